"""What the HTTP service counts, as Prometheus text. One event loop counts, so there is no lock."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from pipeline.feed_records import Version

BOUNDS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
NAME = "counterpoise_"


@dataclass
class Metrics:
    """Counts since the start of the service.

    Attributes:
        requests: by route and status.
        latencies: requests by the bound that they stayed under, the last beyond all.
        seconds: sum of all latencies.
        lists: lists that were answered.
        fallbacks: those of them that were the fallback list.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    latencies: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    seconds: float = 0.0
    lists: int = 0
    fallbacks: int = 0

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests[route, status] += 1
        self.latencies[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.seconds += seconds

    def text(self, version: Version | None, age_days: int, *, is_refused: bool) -> str:
        """Return all counts and the age of the version, in the text format of Prometheus."""
        lines = [f"# TYPE {NAME}requests_total counter"]
        for (route, status), count in sorted(self.requests.items()):
            lines.append(f'{NAME}requests_total{{route="{route}",status="{status}"}} {count}')
        lines.append(f"# TYPE {NAME}request_seconds histogram")
        total = 0
        for bound, count in zip([*map(str, BOUNDS_SECONDS), "+Inf"], self.latencies, strict=True):
            total += count
            lines.append(f'{NAME}request_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"{NAME}request_seconds_sum {self.seconds:.6f}", f"{NAME}request_seconds_count {total}"]
        lines += _single("lists_total", "counter", self.lists)
        lines += _single("fallback_lists_total", "counter", self.fallbacks)
        lines += _single("version_refused", "gauge", int(is_refused))
        if version is not None:
            lines += _single("version_age_days", "gauge", age_days)
            labels = ("name", "model_version", "scored_for")
            shown = ",".join(f'{label}="{getattr(version, label)}"' for label in labels)
            lines += [f"# TYPE {NAME}version_info gauge", f"{NAME}version_info{{{shown}}} 1"]
        return "\n".join(lines) + "\n"


def _single(name: str, kind: str, value: int) -> list[str]:
    return [f"# TYPE {NAME}{name} {kind}", f"{NAME}{name} {value}"]
