"""The library that metrics are made with, which is an extra."""

from numbers_uring.errors import ExtraLibraryError


def require_metrics_library() -> None:
    """Raise ExtraLibraryError where the library for --metrics can't be loaded."""
    try:
        # Here, because it is an extra, and takes a tenth of a second to import.
        import prometheus_client  # noqa: F401, PLC0415
    except ImportError as error:
        library = "the prometheus-client library"
        raise ExtraLibraryError("--metrics", library, "metrics", error) from error
