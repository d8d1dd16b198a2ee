"""URIs as messages and records may hold them: without passwords, keys and tokens."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SECRET_WORDS = ("password", "passwd", "pwd", "secret", "token", "access_key", "account_key")
CREDENTIALS = re.compile(r"(?<=://)[^@\s'\"]*@")


def is_uri(source: str | Path) -> bool:
    """Return whether a source is given as a URI such as s3://bucket/prefix, not as a path."""
    return "://" in str(source)


def holds_secret(uri: str) -> bool:
    """Return whether a URI holds a password, as user:password@host or as one of its options.

    One that cannot be taken apart holds one if it has an @: an unescaped / in a password splits it at the wrong place.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "@" in uri
    split_within = "@" not in parts.netloc and ":" in parts.netloc and "@" in parts.path
    options = parse_qs(parts.query, keep_blank_values=True)
    return (
        bool(parts.password) or split_within or any(word in name.lower() for name in options for word in SECRET_WORDS)
    )


def shown(source: str | Path) -> str:
    """Return a source as messages and records may show it: a URI without its credentials and options."""
    if not is_uri(source):
        return str(source)
    scheme, _, rest = str(source).partition("://")
    plain = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = plain.partition("/")
    if "@" not in host and ":" in host and "@" in path:  # an unescaped / in a password
        host, slash, path = path.rpartition("@")[2].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def without_credentials(text: str) -> str:
    """Return a text whose URIs have lost what stands before their @."""
    return CREDENTIALS.sub("", text)
