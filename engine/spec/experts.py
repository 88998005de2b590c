"""What a model with experts has beside its fields, and the rules of these fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.spec.errors import RequestError
from engine.spec.numbers import divisors, listed
from engine.spec.sentence import Sentence, sentence

if TYPE_CHECKING:
    from engine.spec.model import ModelSpec

# The fields that only a model with experts has.
_OF_EXPERTS = (
    "experts_per_token", "expert_ffn", "shared_ffn", "dense_layers", "expert_every", "expert_groups", "chosen_groups",
    "balancing_rate", "capacity_factor", "router", "normalized_router", "balancing",
)  # fmt: skip


class ExpertNumbers:
    """Properties of a `ModelSpec` that are about its experts."""

    def has_experts(self: Any, layer: int) -> bool:
        """Whether layer `layer`, counted from 0, has experts in place of its MLP."""
        return self.experts > 0 and layer >= self.dense_layers and (layer + 1) % (self.expert_every or 1) == 0

    @property
    def expert_layers(self: Any) -> int:
        """The number of layers with experts."""
        return sum(map(self.has_experts, range(self.layers))) if self.experts else 0

    @property
    def expert_choices(self: Any) -> int:
        """Experts that a token goes to, beside those that all go to."""
        return self.experts_per_token or min(2, self.experts)

    @property
    def expert_width(self: Any) -> int:
        """The inner width of an expert."""
        return self.expert_ffn or self.ffn_width

    @property
    def rate_of_balancing(self: Any) -> float:
        return self.balancing_rate or 0.001

    def active_parameters(self: Any) -> int:
        """The number of parameters that one token goes through: of the experts of a layer only those that it chooses."""
        return self.parameters() - self.expert_layers * (self.experts - self.expert_choices) * self._parameters_of_expert()

    @property
    def expert_parameters(self: Any) -> tuple[int, int]:
        """Of a layer with experts: the parameters of its experts, and those that it has besides more than one with an MLP."""
        routed = self.experts * self._parameters_of_expert()
        return routed, self._more_with_experts() - routed

    def _parameters_of_expert(self: Any) -> int:
        """An expert has no biases."""
        return (3 if self.parts.gated else 2) * self.hidden * self.expert_width

    def _more_with_experts(self: Any) -> int:
        """The parameters that a layer with experts has more than one with an MLP: a router, experts, and the shared ones."""
        parts = self.parts
        shared = parts.mlp_parameters(self.hidden, self.shared_ffn) if self.shared_ffn else 0
        routed = self.experts * (self.hidden + self._parameters_of_expert())
        return routed + shared - parts.mlp_parameters(self.hidden, self.ffn_width)


def wrong_experts(model: ModelSpec) -> Sentence | None:
    """What is wrong with a number of the experts, with what fits. None if all fit."""
    if not model.experts:
        named = next((name for name in _OF_EXPERTS if getattr(model, name)), None)
        named = "router_scale" if named is None and model.router_scale != 1 else named
        if named is None:
            return None
        return sentence("{name}={value} is for models with experts, and experts=0", name=named, value=getattr(model, named))
    values: dict[str, Any] = {"experts": model.experts, "chosen": model.expert_choices, "groups": model.expert_groups}
    if model.expert_choices > model.experts:
        return sentence("experts_per_token={chosen} is more than experts={experts}", **values)
    if model.expert_groups and model.experts % model.expert_groups:
        fits = listed(divisors(model.experts))
        return sentence("expert_groups={groups} does not divide experts={experts}; {fits} do", fits=fits, **values)
    if model.chosen_groups > model.expert_groups:
        return sentence("chosen_groups={some} is more than expert_groups={groups}", some=model.chosen_groups, **values)
    if model.expert_groups:
        within = (model.chosen_groups or 1) * (model.experts // model.expert_groups)
        if within < model.expert_choices:
            return sentence(
                "the groups that a token chooses have {within} experts, and experts_per_token={chosen}", within=within, **values
            )
    if model.expert_choices == 1 and model.parts.normalized_router:
        return sentence(
            "a token goes to one expert, whose weight divided by itself is 1, so the router would not learn; "
            "normalized_router=false fits"
        )
    if not model.expert_layers:
        return sentence(
            "none of the {layers} layers would have experts: dense_layers={dense}, expert_every={every}",
            layers=model.layers, dense=model.dense_layers, every=model.expert_every,
        )  # fmt: skip
    if model.parts.encoder:
        return sentence("experts are for models with one stack of layers, and {family} has two", family=model.family)
    if model.parts.parallel != "none":
        return sentence("experts come after attention, not in parallel={parallel}", parallel=model.parts.parallel)
    return None


def refuse_experts(model: ModelSpec, what: Sentence) -> None:
    """Raise `RequestError` if the model has experts, which `what` does not know."""
    if model.experts:
        raise RequestError(sentence("{what} does not know models with experts yet", what=what))
