"""How a server is entered: credentials and TLS, the same for reading and for pushing."""

from __future__ import annotations

import base64
import os
import ssl
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)

HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")]


class AccessError(Exception):
    """Credentials or certificates cannot be used; the message names the file and never a secret."""


class HttpAccess(BaseModel):
    """Credentials and TLS of one server.

    Files of secrets are read again for each request, since orchestrators rotate them in place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr | None = Field(None, description="bearer token")
    token_file: Path | None = Field(
        None, description="file that holds the bearer token; read again for each request"
    )
    token_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        max_length=128,
        description="environment variable that holds the bearer token",
    )
    username: str | None = Field(None, max_length=256, description="user of basic authentication")
    password: SecretStr | None = Field(None, description="password of basic authentication")
    password_file: Path | None = Field(
        None, description="file that holds the password; read again for each request"
    )
    headers: dict[HeaderName, SecretStr] = Field(
        default_factory=dict,
        description="headers to add, such as X-Scope-OrgID, the tenant of Mimir",
    )
    verify_tls: bool = Field(
        default=True, description="false accepts any certificate, and says so in the log"
    )
    ca_file: Path | None = Field(
        None, description="PEM file of the authorities to trust instead of the system's"
    )
    client_certificate_file: Path | None = Field(
        None, description="PEM file of the certificate to show to the server"
    )
    client_key_file: Path | None = Field(
        None, description="PEM file of its key, where the certificate's file does not hold it"
    )

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        ways = {
            "token": self.token,
            "token_file": self.token_file,
            "token_variable": self.token_variable,
            "password": self.password,
            "password_file": self.password_file,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if (self.username is not None) != bool({"password", "password_file"} & set(given)):
            raise ValueError("username goes with password or password_file")
        if self.ca_file is not None and not self.verify_tls:
            raise ValueError("ca_file has no use with verify_tls = false")
        if self.client_key_file is not None and self.client_certificate_file is None:
            raise ValueError("client_key_file goes with client_certificate_file")
        return self

    def request_headers(self) -> dict[str, str]:
        """Return the headers to send with a request now.

        Raises:
            AccessError: when a file or variable holds no secret.
        """
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.get_secret_value()}"
        elif self.token_file is not None:
            headers["Authorization"] = f"Bearer {read_secret(self.token_file)}"
        elif self.token_variable is not None:
            headers["Authorization"] = f"Bearer {_from_environment(self.token_variable)}"
        elif self.username is not None:
            pair = f"{self.username}:{self._password()}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode('ascii')}"
        return headers

    def _password(self) -> str:
        if self.password_file is not None:
            return read_secret(self.password_file)
        return "" if self.password is None else self.password.get_secret_value()

    def ssl_context(self) -> ssl.SSLContext:
        """Return what httpx verifies a server by.

        Raises:
            AccessError: when a certificate or key cannot be read.
        """
        try:
            context = ssl.create_default_context(
                cafile=None if self.ca_file is None else str(self.ca_file)
            )
            if not self.verify_tls:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.client_certificate_file is not None:
                # A pass phrase would be asked for on the terminal; there is nobody to answer.
                context.load_cert_chain(
                    self.client_certificate_file, self.client_key_file, password=""
                )
        except (OSError, ssl.SSLError) as error:
            raise AccessError(
                f"the certificates cannot be used: {error}; check ca_file, client_certificate_file "
                "and client_key_file"
            ) from error
        return context


def _from_environment(name: str) -> str:
    text = os.environ.get(name, "").strip()
    if not text or not text.isascii() or not text.isprintable():
        raise AccessError(f"the environment variable {name} holds no secret; set it")
    return text


def read_secret(path: Path) -> str:
    """Return the one line of a file.

    Raises:
        AccessError: when it cannot be read, or holds no single printable line.
    """
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise AccessError(f"{path} cannot be read: {reason}; check path and permissions") from error
    if not text or not text.isascii() or not text.isprintable():
        raise AccessError(f"{path} holds no secret; put it there alone on one line")
    return text
