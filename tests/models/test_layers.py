"""What the layers of an expert compute, in training and in evaluation."""

import pytest
import torch

from models.layers import BatchNorm, ExpertLayers, LayerNorm

HIDDEN = (5, 4)
INPUT_WIDTH = 6


def test_dropout_acts_in_training_alone() -> None:
    layers = ExpertLayers(experts=2, input_width=INPUT_WIDTH, hidden=(200,), dropout=0.5)
    x_BD = torch.rand(50, INPUT_WIDTH)
    dropped, kept = layers(x_BD), layers.eval()(x_BD)
    torch.testing.assert_close(kept, layers(x_BD), rtol=0, atol=0)
    active = kept > 0
    share = float((dropped[active] == 0).float().mean())
    # At least 5000 activations: five standard errors of a share of one half are 0.035.
    assert active.sum() > 5000
    assert share == pytest.approx(0.5, abs=0.035)


def test_experts_with_an_input_each_equal_experts_with_the_same_input() -> None:
    layers = ExpertLayers(experts=3, input_width=INPUT_WIDTH, hidden=HIDDEN).double()
    x_BD = torch.randn(7, INPUT_WIDTH, dtype=torch.float64)
    torch.testing.assert_close(layers(x_BD.unsqueeze(1).expand(-1, 3, -1)), layers(x_BD))


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_an_expert_is_linear_norm_activation_layer_by_layer(norm: str, activation: str) -> None:
    """HoME, Wang et al. 2024: normalisation and Swish in each expert."""
    layers = ExpertLayers(experts=2, input_width=INPUT_WIDTH, hidden=HIDDEN, norm=norm, activation=activation).double()
    for weight in layers.parameters():
        torch.nn.init.normal_(weight)
    x_BD = torch.randn(7, INPUT_WIDTH, dtype=torch.float64)
    output_BEO = layers(x_BD)
    for expert in range(2):
        x = x_BD
        for depth in range(len(HIDDEN)):
            linear = layers.layers[depth]
            x = x @ linear.get_parameter("weight_GIO")[expert] + linear.get_parameter("bias_GO")[expert]
            if norm != "none":
                over = {"layer": 1, "batch": 0}[norm]
                variance = x.var(over, keepdim=True, unbiased=False)
                scale, shift = (layers.norms[depth].get_parameter(name)[expert] for name in ("scale_GO", "bias_GO"))
                x = (x - x.mean(over, keepdim=True)) / (variance + 1e-5).sqrt() * scale + shift
            x = x.clamp(min=0) if activation == "relu" else x / (1 + torch.exp(-x))
        torch.testing.assert_close(output_BEO[:, expert], x)


def test_norms_begin_by_giving_moments_zero_and_one() -> None:
    x_BGO = 3 + 5 * torch.randn(400, 2, 50)
    for norm, over in ((LayerNorm(groups=2, width=50), 2), (BatchNorm(groups=2, width=50), 0)):
        normal_BGO = norm(x_BGO)
        torch.testing.assert_close(normal_BGO.mean(over), torch.zeros_like(normal_BGO.mean(over)), atol=1e-5, rtol=0)
        deviation = normal_BGO.std(over, unbiased=False)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=1e-4, rtol=0)


def test_batch_norm_in_evaluation_uses_what_training_saw_and_no_other_row() -> None:
    norm = BatchNorm(groups=2, width=3)
    for _ in range(200):
        norm(3 + 2 * torch.randn(500, 2, 3))
    norm.eval()
    x_BGO = torch.randn(9, 2, 3)
    torch.testing.assert_close(norm(x_BGO), (x_BGO - 3) / 2, atol=0.1, rtol=0)
    torch.testing.assert_close(norm(x_BGO), torch.cat([norm(row) for row in x_BGO.split(1)]), rtol=0, atol=0)
    assert norm(x_BGO[:0]).shape == (0, 2, 3)


def test_a_training_batch_of_one_row_is_normalised_by_the_running_moments_and_leaves_them() -> None:
    norm, x_BGO = BatchNorm(groups=2, width=3), torch.randn(1, 2, 3)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    torch.testing.assert_close(norm(x_BGO), norm.eval()(x_BGO), rtol=0, atol=0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
