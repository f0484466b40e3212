"""SAEs as this project and other tools train them at equal settings, for quality.py.

Each tool has its own start, except that b_dec starts at the mean, or at the tool's estimate of it; that of dictionary_learning's
JumpReLU starts at zero. The window after which a feature is dead is the profile's, or that of our AuxK, because the tools' own are
longer than a training of the embedded default. Each tool is imported where it is used, so a missing or broken one does not stop
the others.
"""

from functools import partial

from trainers import dictionary_learning, sae_lens, sparsify
from trainers.ours import ours
from trainers.settings import Builder

OURS = "ours"
# Architecture -> tool -> what builds its SAE. Ours comes first, because others aim at its L0.
TOOLS: dict[str, dict[str, Builder]] = {
    "topk": {
        OURS: ours,
        "ours, gradients not clipped": partial(ours, clip=False),
        "ours, decoder rows of length 1": partial(ours, decoder_norm=1.0),
        "ours, half the learning rate": partial(ours, lr=0.5),
        "ours, twice the learning rate": partial(ours, lr=2.0),
        "ours, the authors' start": partial(ours, start="authors"),
        "ours, tokenized": partial(ours, table="learned"),
        "ours, tokenized, remainder": partial(ours, table="learned", encoder_input="remainder"),
        "SAELens": sae_lens.topk,
        "dictionary_learning": dictionary_learning.topk,
        "sparsify": sparsify.topk,
    },
    "batchtopk": {
        OURS: ours,
        "SAELens": sae_lens.batchtopk,
        "dictionary_learning": dictionary_learning.batchtopk,
    },
    "matryoshka": {
        OURS: ours,
        "SAELens": sae_lens.matryoshka,
        "dictionary_learning": dictionary_learning.matryoshka,
    },
    "auxk": {
        OURS: ours,
        "SAELens": sae_lens.topk,
        "dictionary_learning": dictionary_learning.topk,
        "sparsify": sparsify.topk,
    },
    "jumprelu": {
        OURS: ours,
        "SAELens": sae_lens.jumprelu,
        "SAELens, our penalty": partial(sae_lens.jumprelu, aim=False),
        "dictionary_learning": dictionary_learning.jumprelu,
    },
}
