"""CAs and the certificates that they sign, as files that openssl makes."""

import subprocess
from pathlib import Path

NAMES = "subjectAltName=IP:127.0.0.1"


class Certificates:
    """Two CAs, and certificates for the NATS server and for us that the first has signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.make_ca("ca")
        self.make_ca("other-ca")
        self.sign("server", use="serverAuth")
        self.sign("client", use="clientAuth")
        both = self.path("client.pem").read_bytes() + self.path("client.key").read_bytes()
        self.path("both.pem").write_bytes(both)
        secret = ("-in", str(self.path("client.key")), "-out", str(self.path("secret.key")))
        _openssl("pkey", "-aes256", "-passout", "pass:secret", *secret)

    def path(self, name: str) -> Path:
        return self._folder / name

    def make_ca(self, name: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
        files = ("-keyout", str(self.path(f"{name}.key")), "-out", str(self.path(f"{name}.pem")))
        use = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl("req", "-x509", *key, "-days", "2", *use, *files, f"-subj=/CN={name}")

    def sign(self, name: str, *, use: str, ca: str = "ca", days: int = 2) -> None:
        """Write NAME.pem and NAME.key; with negative `days` the certificate has expired."""
        request, extensions = self.path(f"{name}.csr"), self.path(f"{name}.ext")
        # Python 3.13 and newer accept no chain without the identifiers: RFC 5280 requires them.
        extensions.write_text(
            f"basicConstraints=CA:FALSE\nextendedKeyUsage={use}\n{NAMES}\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
        files = ("-keyout", str(self.path(f"{name}.key")), "-out", str(request))
        _openssl("req", "-new", *key, *files, f"-subj=/CN={name}")
        signer = ("-CA", str(self.path(f"{ca}.pem")), "-CAkey", str(self.path(f"{ca}.key")))
        _openssl(
            *("x509", "-req", "-in", str(request), *signer, "-days", str(days)),
            *("-extfile", str(extensions), "-out", str(self.path(f"{name}.pem"))),
        )
        if days > 0:
            authority = ("-CAfile", str(self.path(f"{ca}.pem")))
            _openssl("verify", "-x509_strict", *authority, str(self.path(f"{name}.pem")))


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
