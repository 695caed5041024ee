"""Stage 3: gives the text encoders a head start: they predict a drawing's attributes from its caption.

Without it the denoiser has to discover the meaning of tags from noise; with it tags work from the first hundred steps.
Writes `text_encoders.pt`. One process: the encoders are tiny.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

from clip_tokens import CompactVocabulary
from drawings import Attributes, caption, sample_attributes
from networks import encode_prompts, text_encoders
from training import Budget, Ranks, Report, parser
from vocabulary import BACKGROUNDS, EXPRESSION_NAMES, EYES, HAIR, LENGTHS, SCENES, SHIRTS, SKINS

LEARNING_RATE = 2e-3
BATCH = 48
QUESTIONS: dict[str, list] = {
    "kind": ["char", "scene"],
    "hair": list(HAIR),
    "length": LENGTHS,
    "eyes": list(EYES),
    "expr": EXPRESSION_NAMES,
    "shirt": list(SHIRTS),
    "bg": list(BACKGROUNDS),
    "scene": list(SCENES),
    "bgkind": ["plain", "gradient", "scene"],
    "boy": [False, True],
    "glasses": [False, True],
    "ears": [False, True],
    "hat": [False, True],
    "skin": list(SKINS),
}


def answer(question: str, attributes: Attributes) -> tuple[int, float]:
    """Index of the right answer, and its weight: 0 where the caption cannot tell."""
    is_scene = attributes["kind"] == "scene"
    in_scene = is_scene or attributes["bgkind"] == "scene"
    known = {"bg": not in_scene, "scene": in_scene, "kind": True}.get(question, not is_scene)
    value = bool(attributes["hat"]) if question == "hat" else attributes[question]
    return QUESTIONS[question].index(value), float(known)


class Examiner(nn.Module):
    """Asks each question of the token states (attention with a learnt query) and of the pooled projection."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.ParameterDict({name: nn.Parameter(torch.randn(128) * 0.3) for name in QUESTIONS})
        self.from_states = nn.ModuleDict({name: nn.Linear(128, len(options)) for name, options in QUESTIONS.items()})
        self.from_pooled = nn.ModuleDict({name: nn.Linear(64, len(options)) for name, options in QUESTIONS.items()})

    def forward(
        self, states: torch.Tensor, pooled: torch.Tensor, shown: list[Attributes]
    ) -> tuple[torch.Tensor, float]:
        """Sum of the losses over all questions, and the mean share of right answers from the token states."""
        total, right = torch.zeros(()), []
        for name in QUESTIONS:
            answers = [answer(name, attributes) for attributes in shown]
            target, weight = torch.tensor([a for a, _ in answers]), torch.tensor([w for _, w in answers])
            attention = (states @ self.queries[name] / 128**0.5 * 4).softmax(-1)
            logits = self.from_states[name]((attention[..., None] * states).sum(1)), self.from_pooled[name](pooled)
            losses = sum(F.cross_entropy(each, target, reduction="none") for each in logits)
            total = total + (losses * weight).sum() / (weight.sum() + 1)
            right.append((((logits[0].argmax(-1) == target) * weight).sum() / (weight.sum() + 1e-6)).item())
        return total, sum(right) / len(right)


def main() -> None:
    """Command line."""
    arguments = parser(__doc__, seconds=260).parse_args()
    ranks = Ranks()
    torch.manual_seed(0)
    rng = random.Random(0)
    vocabulary = CompactVocabulary(arguments.work)
    first, second = text_encoders(vocabulary)
    examiner = Examiner()
    parameters = [parameter for module in (first, second, examiner) for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    budget = Budget(arguments, ranks)
    report, step = Report(ranks, budget, 50), 0
    while (done := budget.fraction(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 30) * (1 - done) + 1e-5
        shown = [sample_attributes(rng) for _ in range(BATCH)]
        captions = [vocabulary.encode(caption(each, rng, drop=0), underscores=rng.random() < 0.07) for each in shown]
        states, pooled = encode_prompts(first, second, vocabulary.batch(captions, max(map(len, captions))))
        loss, right = examiner(states, pooled, shown)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        report.add(step, loss=loss.item(), right=right)
    report.flush(step)
    torch.save({"text_1": first.state_dict(), "text_2": second.state_dict()}, arguments.work / "text_encoders.pt")


if __name__ == "__main__":
    main()
