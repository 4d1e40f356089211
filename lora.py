"""LoRA: a frozen matrix learns through two thin ones beside it.

                 +---------- weight (frozen) ---------+
    x [.., n] ---|                                    |(+)--- y [.., m]
                 +-- lora_A [r, n] --- lora_B [m, r] --+

    y = W x + (alpha / r) B A x

`LoRALinear` is an nn.Linear put in from outside: llama.py does not know of it, the base weight
keeps its name (so weights load before or after), and B starts at zero (so a fresh LoRA changes
nothing). Merging is a call, never a side effect of train() or eval(). Names are those of
MiniGPT-v2's checkpoints.

MoE-LoRA puts several such pairs, the experts, beside the three matrices of an MLP; a router on the
MLP's input chooses one expert a token, the same for all three:

    y = W x + (alpha / r) sum over e of g_e B_e A_e x        p = softmax(router x)
    g = onehot(argmax p) forwards, the gradient of p backwards; or, dense, g = p

Sources: LoRA, arXiv 2106.09685 section 4.1; LLaVA-MoLE, arXiv 2401.16160 section 3.
SkyEyeGPT: r = 64, alpha = 16, dropout 0.05, on q_proj and v_proj. RS-GPT4V published neither rank
nor experts of its MoE-LoRA; ours are LLaVA-MoLE's, r = 32, alpha = 64, 3 experts.

Shapes: n inputs and m outputs of a layer, r rank, E experts, D width.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LoRAConfig:
    r: int = 64                                         # rank
    alpha: float = 16.0                                 # the product is scaled by alpha / r
    dropout: float = 0.05                               # on the input of A, in training
    targets: tuple[str, ...] = ("q_proj", "v_proj")     # names of the linear layers it is put on
    experts: int = 0                                    # of every MLP; 0: no MoE-LoRA
    dense: bool = False                                 # all experts, weighted by the router


MOE_LORA = LoRAConfig(32, 64.0, 0.05, ("q_proj", "k_proj", "v_proj", "o_proj"), experts=3)


class Linear(nn.Linear):
    """nn.Linear whose start values come from elsewhere."""

    def reset_parameters(self) -> None:
        pass


class LoRALinear(Linear):
    def __init__(self, base: nn.Linear, config: LoRAConfig):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = config.alpha / config.r, config.dropout
        # float32 whatever the base is stored in: the steps of training are too small for 16 bits.
        place = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = Linear(base.in_features, config.r, bias=False, **place)
        self.lora_B = Linear(config.r, base.out_features, bias=False, **place)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5 ** 0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:                                   # [.., n]
        low = F.dropout(x, self.dropout, self.training).to(self.lora_A.weight.dtype)
        low = self.lora_A(low)                                                # [.., r]
        return super().forward(x) + (self.scale * self.lora_B(low)).to(x.dtype)    # [.., m]

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """-> a plain nn.Linear that computes the same."""
        plain = Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight = merge_weight(self.weight, self.lora_A.weight, self.lora_B.weight, self.scale)
        plain.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)
        plain.bias = self.bias
        return plain


class ExpertLinear(LoRALinear):
    """The experts' A and B lie below each other: lora_A [E r, n], lora_B [m, E r]."""

    def __init__(self, base: nn.Linear, config: LoRAConfig):
        super().__init__(base, replace(config, r=config.r * config.experts,
                                       alpha=config.alpha * config.experts))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:                    # [.., n], [.., E]
        low = F.dropout(x, self.dropout, self.training).to(self.lora_A.weight.dtype)
        low = self.lora_A(low).unflatten(-1, (gates.shape[-1], -1))           # [.., E, r]
        low = (low * gates[..., None]).flatten(-2)                            # [.., E r]
        return F.linear(x, self.weight, self.bias) + (self.scale * self.lora_B(low)).to(x.dtype)


class ExpertMLP(nn.Module):
    """A SwiGLU whose three matrices have experts, and the router they share."""

    def __init__(self, mlp: nn.Module, config: LoRAConfig):
        super().__init__()
        self.dense = config.dense
        self.gate_proj = ExpertLinear(mlp.gate_proj, config)
        self.up_proj = ExpertLinear(mlp.up_proj, config)
        self.down_proj = ExpertLinear(mlp.down_proj, config)
        weight = mlp.gate_proj.weight
        self.lora_router = Linear(weight.shape[1], config.experts, device=weight.device)
        nn.init.normal_(self.lora_router.weight, std=0.02)
        nn.init.zeros_(self.lora_router.bias)
        self.load: Tensor | int = 0                             # tokens routed to each expert, [E]

    def forward(self, x: Tensor) -> Tensor:                                   # [.., D]
        p = self.lora_router(x.to(self.lora_router.weight.dtype)).softmax(-1)     # [.., E]
        chosen = F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)             # [.., E]
        if self.training:
            self.load = self.load + chosen.detach().flatten(0, -2).sum(0)     # [E]
        g = p if self.dense else chosen - p.detach() + p                      # [.., E]
        return self.down_proj(F.silu(self.gate_proj(x, g)) * self.up_proj(x, g), g)


def add_lora(model: nn.Module, config: LoRAConfig) -> int:
    """Put LoRA on every linear layer whose name is a target -> how many there were.

    ValueError: no layer has such a name.
    """
    if config.experts:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if name == "mlp" and not isinstance(child, ExpertMLP):
                    setattr(parent, name, ExpertMLP(child, config))
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


def merge_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """[m, n], [r, n], [m, r] -> float32[m, n]"""
    return weight.float() + scale * lora_B.float() @ lora_A.float()


def merge_lora(model: nn.Module) -> None:
    """Fold every LoRA into its base weight: the same function, without LoRA.

    ValueError: experts depend on the token, so they cannot be folded into one weight.
    """
    if any(isinstance(module, ExpertMLP) for module in model.modules()):
        raise ValueError("MoE-LoRA cannot be merged: which expert acts depends on the token")
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA tensors alone, by their names in the model."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def expert_load(model: nn.Module) -> list[float]:
    """The share of the tokens that each expert was given in training, over all layers; [] without
    experts."""
    loads = [module.load for module in model.modules() if isinstance(module, ExpertMLP)]
    total = sum(loads)
    return (total / total.sum()).tolist() if isinstance(total, Tensor) else []


if __name__ == "__main__":                      # prints the shapes and parameters of an example
    from support.tools.model_examples import show_lora
    show_lora()
