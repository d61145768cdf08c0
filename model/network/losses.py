"""The training losses of M3D. Knows logits and targets only."""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name


def language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of each next token; (B, L, V), (B, L) with -100 where nothing is asked."""
    asked = labels[:, 1:].to(logits.device)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), asked.flatten())


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - 2|PT| / (|P| + |T| + 1) over samples; the 1 is in the denominator only."""
    inside, wanted = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = (inside * wanted).sum(dim=1)
    return (1 - 2 * overlap / (inside.sum(dim=1) + wanted.sum(dim=1) + 1)).mean()
