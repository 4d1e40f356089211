"""LoRA: a frozen matrix learns through two thin ones beside it.

                 +---------- weight (frozen) ---------+
    x [.., n] ---|                                    |(+)--- y [.., m]
                 +-- lora_A [r, n] --- lora_B [m, r] --+

    y = W x + (alpha / r) B A x

`LoRALinear` is an nn.Linear put in from outside: llama.py knows nothing of it, the base weight
keeps its name (so weights load before or after), and B starts at zero (so a fresh LoRA changes
nothing). Merging is a call, never a side effect of train() or eval(). Names are those of
MiniGPT-v2's checkpoints.

Source: LoRA, arXiv 2106.09685 section 4.1.
SkyEyeGPT: r = 64, alpha = 16, dropout 0.05, on q_proj and v_proj.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formats.released.tensors import Stored


@dataclass(frozen=True)
class LoRAConfig:
    r: int = 64                                         # rank
    alpha: float = 16.0                                 # the product is scaled by alpha / r
    dropout: float = 0.05                               # on the input of A, in training
    targets: tuple[str, ...] = ("q_proj", "v_proj")     # names of the linear layers it is put on


class Bare(nn.Linear):
    """nn.Linear whose start values come from elsewhere."""

    def reset_parameters(self) -> None:
        pass


class LoRALinear(Bare):
    def __init__(self, base: nn.Linear, config: LoRAConfig):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = config.alpha / config.r, config.dropout
        # float32 whatever the base is kept in: the steps of training are too small for 16 bits.
        place = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = Bare(base.in_features, config.r, bias=False, **place)
        self.lora_B = Bare(config.r, base.out_features, bias=False, **place)
        if not base.weight.is_meta:
            nn.init.kaiming_uniform_(self.lora_A.weight, a=5 ** 0.5)
            nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:                                   # [.., n]
        low = F.dropout(x, self.dropout, self.training).to(self.lora_A.weight.dtype)
        low = self.lora_A(low)                                                # [.., r]
        return super().forward(x) + (self.scale * self.lora_B(low)).to(x.dtype)    # [.., m]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """-> a plain nn.Linear that computes the same."""
        plain = Bare(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight = merged_weight(self.weight, self.lora_A.weight, self.lora_B.weight, self.scale)
        plain.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)
        plain.bias = self.bias
        return plain


def add_lora(model: nn.Module, config: LoRAConfig) -> int:
    """Put LoRA on every linear layer whose name is a target -> how many there were."""
    count = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            plain = isinstance(child, nn.Linear) and not isinstance(child, LoRALinear)
            if name in config.targets and plain:
                setattr(parent, name, LoRALinear(child, config))
                count += 1
    if not count:
        raise ValueError(f"no linear layer is named {' or '.join(config.targets)}")
    return count


def merged_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """[m, n], [r, n], [m, r] -> float32[m, n]"""
    return weight.float() + scale * lora_B.float() @ lora_A.float()


def merge_stored(tensors: dict[str, Stored], config: LoRAConfig) -> dict[str, Stored]:
    """merge_lora on the tensors of a file, each merged when it is read, in float32."""
    merged = {name: stored for name, stored in tensors.items() if ".lora_" not in name}
    for stem in [name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name]:
        weight, a, b = (tensors[stem + end] for end in (".weight", ".lora_A.weight",
                                                        ".lora_B.weight"))
        merged[stem + ".weight"] = weight.then(weight.shape, lambda w, a=a, b=b: merged_weight(
            w, a.read(), b.read(), config.alpha / config.r))
    return merged


def merge_lora(model: nn.Module) -> None:
    """Fold every LoRA into its base weight: the same function, without LoRA."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA tensors alone, by their names in the model."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
