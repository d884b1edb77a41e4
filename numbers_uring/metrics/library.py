"""The library that metrics are made with, which is an extra."""

from numbers_uring.errors import StartError


def require_metrics_library() -> None:
    """Raise StartError, with a hint, where the library for --metrics is missing."""
    try:
        # Here, because it is an extra, and takes a tenth of a second to import.
        import prometheus_client  # noqa: F401, PLC0415
    except ImportError as error:
        raise StartError(
            f"--metrics needs the prometheus-client library ({error}): "
            "pip install 'numbers-uring[metrics]'"
        ) from error
