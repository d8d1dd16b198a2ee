"""What a check of `counterpoise doctor` found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A check in one line: what it is of, whether all is well, and a sentence that says what to do where it is not."""

    check: str
    ok: bool
    sentence: str

    def line(self) -> str:
        """Return the line that the doctor prints."""
        return f"{'ok     ' if self.ok else 'problem'} {self.check}: {self.sentence}"


def judged(check: str, problems: list[str], well: str) -> list[Finding]:
    """Return a finding for each problem, or one that says what is well."""
    return [Finding(check, ok=False, sentence=problem) for problem in problems] or [
        Finding(check, ok=True, sentence=well)
    ]
