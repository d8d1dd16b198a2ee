"""What torchrun tells a process that it starts, without loading torch."""

import os


def asked_for() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def leads() -> bool:
    """Return whether this process writes and logs: the first of several, or the only one."""
    return not asked_for() or os.environ["RANK"] == "0"


def check_command(name: str | None) -> None:
    """Refuse to run what several processes would only do several times.

    Raises:
        ValueError: torchrun started a command other than train.
    """
    if asked_for() and name != "train":
        raise ValueError(
            f"torchrun started `{name}` in {os.environ['WORLD_SIZE']} processes, but only `train` is shared between "
            "processes: run the command without torchrun"
        )
