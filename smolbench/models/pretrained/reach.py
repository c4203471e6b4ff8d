"""Which weights of a network texts reach: measured on a few random tokens, not read off names.

A repository may hold more than reads texts: a vision tower and what joins it to the language model
(Gemma 3), layers that other layers' keys replace. Such weights get no gradient, whatever is trained
on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smolbench.models.pretrained.causality import trial_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEW, _SOME, _MANY = (1, 4), (2, 16), (8, 32)
"""Rows and tokens in each. Few tokens, which are all the same, reach few of a mixture's experts;
some reach all of a network that is used as a whole; many are for what these have not reached."""


@dataclass(frozen=True)
class Reach:
    """What texts reach in a network.

    Attributes:
        unused: Names of the parameters that no text reaches.
        experts: Names of modules that some texts reach and others do not, since a router chooses
            among them and their like; all of their parameters are in use.
    """

    unused: frozenset[str] = frozenset()
    experts: frozenset[str] = frozenset()


def reach(
    model: PreTrainedModel, run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Reach:
    """Find out which parameters take part in what a network says of texts.

    A forward pass builds the graph that a backward pass would follow, and what stands at its ends
    is reached; nothing is kept for a backward pass, and none is run. Weights in 4 bits have no
    place in the graph: those of a layer that is called are reached.

    Args:
        model: A network as it was loaded, before anything is added to it or frozen. Which of its
            parameters train is left as it was.
        run: What is trained by: token ids and mask ``(B, T)`` to a tensor.
    """
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    network: nn.Module = model  # transformers' own methods are untyped
    network.eval()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    try:
        few = trial_rows(model, *_FEW)
        trials = [few[:, :1].expand_as(few), trial_rows(model, *_SOME)]
        reached = [_reached(model, run, ids) for ids in trials]
        if trained.keys() - set().union(*reached):
            reached.append(_reached(model, run, trial_rows(model, *_MANY)))
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
        network.train(training)
    experts = frozenset(_experts(model, reached))
    unused = {name for name in trained if not any(name in names for names in reached)}
    return Reach(frozenset(n for n in unused if not stands_in(n, experts)), experts)


def stands_in(name: str, modules: Collection[str]) -> bool:
    """Whether a parameter is one of some modules', or of what stands in them."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts)))


def outermost(model: nn.Module, parameters: Collection[str]) -> list[str]:
    """Names of the largest modules that hold nothing but these parameters."""
    chosen, found = set(parameters), list[str]()
    for name, module in model.named_modules():
        own = {f"{name}.{weight}" for weight, _ in module.named_parameters()}
        if own and own <= chosen and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _reached(
    model: PreTrainedModel,
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ids: torch.Tensor,
) -> set[str]:
    """Names of the parameters that rows ``(B, T)`` reach."""
    names = {id(p): name for name, p in model.named_parameters()}
    called: set[int] = set()

    def note(module: nn.Module, _: Any) -> None:  # noqa: ANN401 - whatever it is given
        called.update(id(p) for p in module.parameters(recurse=False) if not p.is_floating_point())

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_drop, _never):
            output = run(ids, torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    ends = {id(variable) for variable in _leaves(output)}
    return {names[i] for i in called | ends if i in names}


def _drop(_: torch.Tensor) -> None:
    """Keep nothing of what a backward pass would ask for."""


def _never(_: None) -> torch.Tensor:
    raise RuntimeError("This graph is for looking at: nothing was kept for a backward pass.")


def _leaves(output: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a backward pass from here would give a gradient."""
    waiting: list[Any] = [output.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


def _experts(model: PreTrainedModel, reached: list[set[str]]) -> Iterator[str]:
    """Modules in a list or table of modules of one shape, of which rows reach some only.

    A router chooses among them by the text: what random tokens have not reached, others will.
    A layer of a stack is no such module: all rows pass through it, though some of its weights may
    not be in use.
    """
    for name, container in model.named_modules():
        if not isinstance(container, (nn.ModuleList, nn.ModuleDict)):
            continue
        prefix = f"{name}." if name else ""
        for alike in _of_one_shape(container):
            own = {key: {f"{prefix}{key}.{w}" for w in weights} for key, weights in alike.items()}
            for names in reached:
                touched = [bool(weights & names) for weights in own.values()]
                if any(touched) and not all(touched):
                    yield from (f"{prefix}{key}" for key in own)
                    break


def _of_one_shape(container: nn.Module) -> list[dict[str, list[str]]]:
    """A container's members with weights, grouped by class and shapes: their parameters' names."""
    groups: dict[Any, dict[str, list[str]]] = {}
    for key, member in container.named_children():
        weights = {name: p.shape for name, p in member.named_parameters()}
        if weights:
            kind = type(member), tuple(weights.items())
            groups.setdefault(kind, {})[key] = list(weights)
    return list(groups.values())
