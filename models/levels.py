"""Bodies of several levels of experts of each task and shared ones.

Shapes: B batch, T task, G input (one for all, or one a task and a shared one), N gate, E expert, I input width,
O output width.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from models.adatt import FusionLevel
from models.body import SHARED, BodySize, expert_names
from models.extraction import ExtractionLevel
from models.gating import GateLevel
from models.layers import FirstLayer
from models.stem import STEMLevel

Level = ExtractionLevel | FusionLevel | STEMLevel


class Levels(nn.Module):
    """Runs levels of one kind one after the other: PLE (Tang et al. 2020, section 4.3), AdaTT or STEM.

    Levels below the last have a gate a task and, where there are shared experts, one for these; the last has only the
    task gates.
    """

    def __init__(self, size: BodySize, *, level: Callable[..., Level]) -> None:
        super().__init__()
        self.size = size
        last = size.levels - 1
        self.levels = nn.ModuleList(
            level(
                size,
                input_width=size.hidden[-1] if depth else size.input_width,
                gates=size.tasks + (depth < last and size.experts > 0),
            )
            for depth in range(size.levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, I), or the inputs of tasks and shared experts (B, T + 1, I), to (B, T, O)."""
        return self.forward_with_gates(x)[0]

    def forward_with_gates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the output beside each level's weights of experts: (B, N, E), zero where a gate does not see one."""
        return self._above(*self.levels[0](x))

    def first_layers(self) -> list[FirstLayer]:
        """Returns the layers that read the input: those of the first level."""
        return self._first_level().first_layers()

    def finish(self, firsts: Sequence[Tensor]) -> Tensor:
        """Returns the output (B, T, O) from what the first layers give, (B, G, width) each."""
        first_BEO, logits_BNE = firsts
        return self._above(*self._first_level().finish(first_BEO, logits_BNE))[0]

    def _first_level(self) -> Level:
        level = self.levels[0]
        assert isinstance(level, Level)
        return level

    def _above(self, x: Tensor, gates_BNE: Tensor) -> tuple[Tensor, list[Tensor]]:
        gates = [gates_BNE]
        for level in self.levels[1:]:
            x, gates_BNE = level(x)
            gates.append(gates_BNE)
        return x, gates

    def gate_levels(self, tasks: Sequence[str]) -> list[GateLevel]:
        """Names the gates and the experts of each level."""
        names, experts = [*tasks, SHARED], expert_names(self.size, tasks)
        visible = [level.get_buffer("visible_NE") for level in self.levels]
        return [GateLevel(names[: len(visible_NE)], experts, visible_NE) for visible_NE in visible]
