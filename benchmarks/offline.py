"""Benchmarks talk to loopback alone."""


def keep_offline() -> None:
    """Refuse the question for a newer version that DeepCTR-Torch asks on import."""
    import requests

    def refuse(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no connection leaves the machine")

    requests.get = refuse
