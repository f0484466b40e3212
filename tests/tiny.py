"""Tiny seeded stand-ins for the real inputs: pseudo-English text, and random models of the shapes `tsae` meets.

`python tests/tiny.py FOLDER` writes FOLDER/corpus.txt and FOLDER/model, the inputs of `config/smoke.yaml`.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

N_DOCUMENTS = 200
N_WORDS = 400
N_SUCCESSORS = 6
VOCABULARY = 512
N_LAYERS = 4
D_MODEL = 32
N_POSITIONS = 64
# At the libraries' 0.02 the blocks add almost nothing, and every layer's residual is the embedding.
INITIALIZER_RANGE = 0.2


def write_corpus(path: Path, seed: int = 0) -> None:
    """Write about 68 000 tokens of pseudo-English, one document per line.

    Word frequencies follow Zipf's law, and each word has a few favourite successors, so that context tells something.
    """
    rng = np.random.default_rng(seed)
    syllables = ["".join(parts) for parts in itertools.product("bdfklmnprstv", "aeiou", ["", "n", "r", "s"])]
    words = list(dict.fromkeys("".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(2 * N_WORDS)))[
        :N_WORDS
    ]
    zipf = 1 / np.arange(1, N_WORDS + 1)
    zipf /= zipf.sum()
    successors = rng.choice(N_WORDS, (N_WORDS, N_SUCCESSORS), p=zipf)
    lines = []
    for _ in range(N_DOCUMENTS):
        sentences = []
        for _ in range(rng.integers(8, 36)):
            length = int(rng.integers(5, 15))
            unigrams = rng.choice(N_WORDS, length, p=zipf)
            follows = rng.random(length) < 0.7
            choices = rng.integers(0, N_SUCCESSORS, length)
            sentence = [int(unigrams[0])]
            for position in range(1, length):
                next_word = successors[sentence[-1], choices[position]] if follows[position] else unigrams[position]
                sentence.append(int(next_word))
            sentences.append(" ".join(words[word] for word in sentence).capitalize() + ".")
        lines.append(" ".join(sentences))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_gpt2(folder: Path, corpus: Path, seed: int = 0, n_layers: int = N_LAYERS) -> None:
    """Write a random GPT-2-shaped model, and a tokenizer trained on `corpus` whose BOS and EOS are one token."""
    tokenizer = train_tokenizer(corpus, bos="<|endoftext|>", eos="<|endoftext|>")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=N_POSITIONS,
        n_embd=D_MODEL,
        n_layer=n_layers,
        n_head=4,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save(GPT2LMHeadModel(config), tokenizer, folder)


def write_gpt_neox(folder: Path, corpus: Path, seed: int = 0, n_layers: int = N_LAYERS) -> None:
    """Write a random model of Pythia's shape, whose attention and MLP run in parallel, with the tokenizer of `write_gpt2`.

    Its biases and layer norms are random too: folding layer norms that are as the library makes them does nothing.
    """
    tokenizer = train_tokenizer(corpus, bos="<|endoftext|>", eos="<|endoftext|>")
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        max_position_embeddings=N_POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(0.5 * torch.randn(parameter.shape))
        save(model, tokenizer, folder)


def write_llama(folder: Path, corpus: Path, seed: int = 0) -> None:
    """Write a random Llama-shaped model with grouped-query attention, and a tokenizer with a BOS of its own."""
    tokenizer = train_tokenizer(corpus, bos="<|bos|>", eos="<|eos|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=3 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=N_POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save(LlamaForCausalLM(config), tokenizer, folder)


def train_tokenizer(corpus: Path, bos: str, eos: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the lines of `corpus`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(dict.fromkeys([bos, eos])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.read_text().splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder as `kind: folder` of the configuration expects it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Write FOLDER/corpus.txt and FOLDER/model."""
    write_corpus(folder / "corpus.txt")
    write_gpt2(folder / "model", folder / "corpus.txt")


if __name__ == "__main__":
    typer.run(main)
