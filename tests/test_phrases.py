import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from tsae import files
from tsae.config import Phrases
from tsae.metrics import Bootstrap
from tsae.phrases import (
    MAX_OVERLAP,
    Phrase,
    find_phrases,
    measure_phrases,
    read_phrases,
    write_phrase_table,
    write_phrases,
)
from tsae.residuals import ResidualCache
from tsae.sae import SAE
from tsae.sweep import Point

SETTINGS = Phrases(min_count=4, min_documents=1, n_common=0, bootstrap=20)
WORDS = ["<bos>", ".", " the", " Golden", " Gate", " Bridge", "ing", " walk", " New", " York", " City", " 3", "\ufffd"]
BOS, DOT, THE, GOLDEN, GATE, BRIDGE, ING, WALK, NEW, YORK, CITY, THREE, BYTE = range(len(WORDS))


def decode(ids: list[int]) -> str:
    """Token ids beyond the list are words that occur once each."""
    return "".join(WORDS[i] if i < len(WORDS) else f" word{'x' * i}" for i in ids)


class Text:
    """Sequences of 8 tokens, written as their first tokens; the rest are words that occur once."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []
        self.documents: list[list[int]] = []
        self.next = len(WORDS)

    def add(self, tokens: list[int], times: int, document: int = 0, documents: list[int] | None = None) -> "Text":
        for _ in range(times):
            fill = list(range(self.next, self.next + 7 - len(tokens)))
            self.next += len(fill)
            self.ids.append([BOS, *tokens, *fill])
            self.documents.append([-1, *(documents or [document] * 7)])
        return self

    def find(self, settings: Phrases = SETTINGS) -> list[Phrase]:
        return find_phrases(torch.tensor(self.ids).int(), torch.tensor(self.documents).int(), decode, settings)


def texts(phrases: list[Phrase]) -> list[str]:
    return [phrase.text for phrase in phrases]


def test_a_phrase_by_hand() -> None:
    text = Text().add([], 1).add([DOT, GOLDEN, GATE, BRIDGE, DOT], 2).add([THE, GOLDEN, GATE, BRIDGE], 3, document=1)
    assert text.find() == [
        Phrase((GOLDEN, GATE, BRIDGE), " Golden Gate Bridge", 5, (1, 2, 3, 4, 5), (2,) * 5),
    ]
    assert texts(text.find(SETTINGS.model_copy(update={"lengths": (2,)}))) == [" Golden Gate"]


def test_runs_are_frequent_and_within_a_sequence_and_a_document() -> None:
    golden = [GOLDEN, GATE]
    assert Text().add(golden, 3).find() == []
    assert texts(Text().add(golden, 4).find()) == [" Golden Gate"]
    apart = Text()
    apart.ids = [[BOS, DOT, GOLDEN], [BOS, GATE, DOT]] * 4
    apart.documents = [[-1, 0, 0]] * 8
    assert apart.find() == []
    across = Text().add(golden, 3).add(golden, 1, documents=[0, 1, 1, 1, 1, 1, 1])
    assert across.find() == []
    spread = SETTINGS.model_copy(update={"min_documents": 2})
    assert Text().add(golden, 4).find(spread) == []
    assert texts(Text().add(golden, 3).add(golden, 1, document=1).find(spread)) == [" Golden Gate"]


@pytest.mark.parametrize("between", [DOT, THREE, BYTE])
def test_tokens_are_words(between: int) -> None:
    assert Text().add([between, GOLDEN, between, GATE, between], 9).find() == []


def test_phrases_begin_and_end_with_a_word() -> None:
    walking = Text().add([DOT, WALK, ING, DOT], 4).find()
    assert [(phrase.tokens, phrase.text) for phrase in walking] == [((WALK, ING), " walking")]
    assert texts(Text().add([DOT, ING, GATE, DOT], 4).find()) == []
    # " Golden walk" is found where " walk" is a whole word, and counted there only.
    text = Text().add([GOLDEN, WALK, DOT], 4).add([GOLDEN, WALK, ING, DOT], 3)
    assert [(phrase.text, phrase.n_occurrences, phrase.sequences) for phrase in text.find()] == [
        (" Golden walk", 4, (0, 1, 2, 3))
    ]


def test_common_tokens_are_those_of_many_documents() -> None:
    text = Text().add([DOT, THE, BRIDGE], 8, document=0).add([BRIDGE, DOT, BRIDGE, CITY], 8, document=0)
    for document in range(1, 4):
        text.add([THE, DOT], 1, document).add([DOT], 4, document)
    text.add([GOLDEN, GATE], 4, document=1)
    # " Bridge" is more frequent than " the", which is in every document.
    assert set(texts(text.find())) == {" the Bridge", " Bridge City", " Golden Gate"}
    assert set(texts(text.find(SETTINGS.model_copy(update={"n_common": 2})))) == {" Bridge City", " Golden Gate"}


def test_tokens_that_meet_less_often_than_by_chance_are_no_phrase() -> None:
    text = Text().add([GOLDEN, GATE, DOT], 4).add([GOLDEN, DOT] * 3, 20).add([GATE, DOT] * 3, 20)
    assert text.find() == []


def test_the_better_of_overlapping_phrases_stays() -> None:
    text = Text().add([NEW, YORK, DOT], 12).add([NEW, YORK, CITY, DOT], 4)
    assert [(phrase.text, phrase.n_occurrences) for phrase in text.find()] == [(" New York", 16)]
    often = Text().add([NEW, YORK, DOT], 1).add([NEW, YORK, CITY, DOT], 12)
    assert [(phrase.text, phrase.n_occurrences) for phrase in often.find()] == [(" New York City", 12)]
    # Half of the bridges are beside a gate, which is not too many.
    text = Text().add([GOLDEN, GATE, BRIDGE, NEW], 4).add([BRIDGE, NEW], 4).add([GOLDEN, GATE], 30)
    assert texts(text.find()) == [" Golden Gate", " Bridge New"]


def random_text() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(600, len(WORDS) - 1, generator=generator)
    ids = torch.multinomial(weights, 15, replacement=True, generator=generator) + 1
    ids = torch.nn.functional.pad(ids, (1, 0), value=BOS).int()
    ids[::40, 5:9] = torch.tensor([GATE, BRIDGE, YORK, CITY]).int()
    documents = torch.arange(ids.numel()).view(ids.shape) // 100
    documents[:, 0] = -1
    return ids, documents.int()


def test_phrases_are_those_of_a_naive_search() -> None:
    ids, documents = random_text()
    settings = Phrases(min_count=5, min_documents=3, n_common=2, n_phrases=40, max_occurrences=1000)
    found = find_phrases(ids, documents, decode, settings)

    counts = Counter(ids[:, 1:].flatten().tolist())
    n_tokens = sum(counts.values())
    spread: dict[int, set] = defaultdict(set)
    for token, document in zip(ids[:, 1:].flatten().tolist(), documents[:, 1:].flatten().tolist(), strict=True):
        spread[token].add(document)
    common = sorted(spread, key=lambda token: (-len(spread[token]), -counts[token]))[:2]
    usable = {token for token in range(len(WORDS)) if WORDS[token].strip().isalpha()} - set(common)
    places: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for sequence, (row, lines) in enumerate(zip(ids.tolist(), documents.tolist(), strict=True)):
        for n in (2, 3, 4):
            for start in range(1, 16 - n + 1):
                tokens = tuple(row[start : start + n])
                goes_on = start + n < 16 and row[start + n] == ING and lines[start + n] == lines[start]
                in_one = len(set(lines[start : start + n])) == 1
                if set(tokens) <= usable and in_one and tokens[0] != ING and not goes_on:
                    places[tokens].append((sequence, start))
    scores = {
        tokens: len(where) * math.log(len(where) / n_tokens / math.prod(counts[t] / n_tokens for t in tokens))
        for tokens, where in places.items()
        if len(where) >= 5 and len({int(documents[place]) for place in where}) >= 3
    }
    taken: set[tuple[int, int]] = set()
    expected = []
    for tokens in sorted((t for t in scores if scores[t] > 0), key=lambda t: -scores[t]):
        spans = [{(sequence, start + i) for i in range(len(tokens))} for sequence, start in places[tokens]]
        if sum(bool(span & taken) for span in spans) <= MAX_OVERLAP * len(spans):
            taken |= set().union(*spans)
            sequences, positions = zip(*places[tokens], strict=True)
            expected.append(Phrase(tokens, decode(list(tokens)), len(spans), sequences, positions))
    assert len(expected) > 20
    assert {len(phrase.tokens) for phrase in expected} == {2, 3, 4}
    assert found == expected[:40]
    assert find_phrases(ids, documents, decode, settings.model_copy(update={"n_phrases": 3})) == expected[:3]


def test_some_occurrences_are_kept() -> None:
    text = Text().add([GOLDEN, GATE], 50).add([NEW, YORK], 5)
    settings = SETTINGS.model_copy(update={"max_occurrences": 10})
    first, second = text.find(settings)
    assert (first.n_occurrences, len(first.sequences), first.positions) == (50, 10, (1,) * 10)
    assert list(first.sequences) == sorted(set(first.sequences))
    assert (second.text, second.sequences) == (" New York", (50, 51, 52, 53, 54))
    assert text.find(settings) == [first, second]
    other = text.find(settings.model_copy(update={"seed": 1}))[0]
    assert other.sequences != first.sequences


def test_no_phrases() -> None:
    assert Text().add([], 3).find() == []
    assert find_phrases(*random_text(), lambda ids: "!", SETTINGS) == []
    ids, documents = random_text()
    with pytest.raises(ValueError, match=r"documents of shape \(1, 16\) for tokens of shape \(600, 16\)"):
        find_phrases(ids, documents[:1], decode, SETTINGS)


# --- the measure -----------------------------------------------------------------------------------------------------


def write_residuals(folder: Path, x: Tensor, ids: Tensor, norms: Tensor | None = None) -> ResidualCache:
    """A cache of residuals x (n_seq, n_ctx, d) in shards of two sequences; `norms` (n_seq, n_ctx) above 4 are not kept."""
    n_sequences, n_ctx, d_model = x.shape
    norms = torch.ones(n_sequences, n_ctx) if norms is None else norms
    shards = []
    for first in range(0, n_sequences, 2):
        part = slice(first, first + 2)
        shards.append(folder / f"{first}.safetensors")
        files.save_tensors(
            shards[-1],
            {
                "residuals": x[part].flatten(0, 1).half(),
                "tokens": ids[part].flatten().int(),
                "positions": torch.arange(n_ctx, dtype=torch.int32).repeat(len(x[part])),
                "norms": norms[part].flatten().float(),
            },
            {"fingerprint": "f"},
        )
    n_kept = int((norms[:, 1:] <= 4).sum())
    return ResidualCache(
        d_model=d_model,
        vocab_size=int(ids.max()) + 1,
        n_ctx=n_ctx,
        n_sequences=n_sequences,
        n_rows=n_sequences * n_ctx,
        n_kept=n_kept,
        n_outliers=n_sequences * (n_ctx - 1) - n_kept,
        scale=1.0,
        median_norm=1.0,
        mean_norm=1.0,
        max_norm=4.0,
        include_bos=False,
        shards=shards,
        shard_sequences=2,
        batch_sequences=1,
        layer=0,
        fingerprint="f",
        statistics=folder / "layer0.safetensors",
        streamed=frozenset(),
        made_from={},
        index=folder / "index.json",
    )


RELU = {"architecture": "relu", "l1": 1}


def identity_sae(n_features: int, settings: dict = RELU) -> SAE:
    """Its activations are the residual's positive entries."""
    eye, zeros = torch.eye(n_features), torch.zeros(n_features)
    point = Point(**settings, expansion=1, table="none")
    return SAE(point, eye, eye.clone(), zeros, zeros.clone()).requires_grad_(False)


# Five sequences of BOS, " Golden", " Gate" and two other tokens.
IDS = torch.tensor([[BOS, GOLDEN, GATE, DOT, THE]]).repeat(5, 1)
BRIDGED = Phrase((GOLDEN, GATE), " Golden Gate", 7, (0, 1, 2, 3, 4), (1,) * 5)


def firing() -> Tensor:
    """Residuals (5, 5, 4) of what fires: everywhere; on the phrase; on its first token; on the phrase and elsewhere."""
    x = torch.zeros(5, 5, 4)
    x[:, :, 0] = 1
    x[:, 1:3, 1] = 2
    x[:, 1, 2] = 3
    x[:, 1:4, 3] = 4
    return x


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_coverage_by_hand(tmp_path: Path, architecture: str) -> None:
    # A feature that TopK chose does not fire if its activation is zero.
    sae = identity_sae(4, {"architecture": "topk", "k": 4} if architecture == "topk" else RELU)
    rows, frame = measure_phrases(sae, write_residuals(tmp_path, firing(), IDS), [BRIDGED], SETTINGS)
    # The feature that fires everywhere has a score of 0, that of the first token alone less; 2 of 4 tokens are the phrase's.
    assert frame.to_dict("records") == [
        {
            "text": " Golden Gate",
            "ids": [GOLDEN, GATE],
            "count": 7,
            "n_measured": 5,
            "feature": 1,
            "base_rate": 0.5,
            "recall": [1.0, 1.0],
            "score": 0.5,
        }
    ]
    coverage, recall = rows
    assert (coverage.metric, coverage.value, coverage.n) == ("phrase_coverage", 0.5, 1)
    assert (recall.metric, recall.value, recall.n) == ("phrase_token_recall", 1.0, 2)


def test_the_weakest_place_decides(tmp_path: Path) -> None:
    x = firing()[..., 2:]
    x[..., 1] = 0
    x[:, 2, 1] = 1
    x[:, 3, 1] = 1
    _, frame = measure_phrases(identity_sae(2), write_residuals(tmp_path, x, IDS), [BRIDGED], SETTINGS)
    # Neither fires on both tokens: the first fires on a quarter of all tokens, the second on half of them.
    assert frame[["feature", "base_rate", "recall", "score"]].to_numpy().tolist() == [[0, 0.25, [1.0, 0.0], -0.25]]


def test_means_are_over_phrases_and_over_places(tmp_path: Path) -> None:
    x = firing()[..., 2:]
    phrases = [
        Phrase((GOLDEN, GATE), " Golden Gate", 5, (0, 1, 2, 3, 4), (1,) * 5),
        Phrase((GOLDEN, GATE, DOT), " Golden Gate.", 5, (0, 1, 2, 3, 4), (1,) * 5),
        Phrase((GATE, DOT, THE), " Gate. the", 5, (0, 1, 2, 3, 4), (2,) * 5),
    ]
    rows, frame = measure_phrases(identity_sae(2), write_residuals(tmp_path, x, IDS), phrases, SETTINGS)
    assert frame["feature"].tolist() == [1, 1, 0]
    assert frame["base_rate"].tolist() == [0.75, 0.75, 0.25]
    assert frame["recall"].tolist() == [[1, 1], [1, 1, 1], [0, 0, 0]]
    assert frame["score"].tolist() == [0.25, 0.25, -0.25]
    ones = torch.ones(3)
    bootstrap = Bootstrap(3, SETTINGS.bootstrap, SETTINGS.seed)
    assert rows == [
        bootstrap.ratio("phrase_coverage", torch.tensor([0.25, 0.25, -0.25]), ones, 3),
        bootstrap.ratio("phrase_token_recall", torch.tensor([2, 3, 0]), torch.tensor([2, 3, 3]), 8),
    ]
    assert [row.value for row in rows] == pytest.approx([1 / 12, 5 / 8])


def test_occurrences_with_a_token_that_is_not_kept_do_not_count(tmp_path: Path) -> None:
    norms = torch.ones(5, 5)
    norms[1, 2] = norms[2, 1] = 5
    x = firing()
    x[1:3, 1:3, 1] = 0
    _, frame = measure_phrases(identity_sae(4), write_residuals(tmp_path, x, IDS, norms), [BRIDGED], SETTINGS)
    assert frame[["n_measured", "feature", "recall", "base_rate"]].to_numpy().tolist() == [[3, 1, [1.0, 1.0], 6 / 18]]
    norms[:4, 1] = 5
    cache = write_residuals(tmp_path, x, IDS, norms)
    rows, frame = measure_phrases(identity_sae(4), cache, [BRIDGED], SETTINGS)
    assert rows == []
    assert frame.empty


def test_luck_is_not_scored(tmp_path: Path) -> None:
    # Each of 300 features fires on every other token by chance: of half of 12 occurrences one of them covers nearly all.
    x = torch.randn(240, 5, 300, generator=torch.Generator().manual_seed(0))
    phrases = [
        BRIDGED._replace(sequences=tuple(range(first, first + 12)), positions=(1,) * 12) for first in range(0, 240, 12)
    ]
    cache = write_residuals(tmp_path, x, IDS[:1].repeat(240, 1))
    rows, frame = measure_phrases(identity_sae(300), cache, phrases, SETTINGS)
    assert frame["base_rate"].mean() == pytest.approx(0.5, abs=0.05)
    assert rows[1].value == pytest.approx(0.5, abs=0.1)
    assert rows[0].value < 0.05
    in_sample = (x[:12, 1:3] > 0).double().mean(0).amin(0).max()
    assert in_sample > 0.7


def test_base_rates_are_of_a_seeded_sample(tmp_path: Path) -> None:
    x = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(0))
    ids = IDS[:1].repeat(40, 1)
    phrase = BRIDGED._replace(sequences=tuple(range(40)), positions=(1,) * 40)
    cache = write_residuals(tmp_path, x, ids)

    def base_rate(n_tokens: int, seed: int = 0) -> float:
        settings = SETTINGS.model_copy(update={"base_tokens": n_tokens, "seed": seed})
        (_, frame) = measure_phrases(identity_sae(3), cache, [phrase], settings)
        return float(frame["base_rate"][0])

    everywhere = (x[:, 1:] > 0).double().mean((0, 1)).tolist()
    assert any(base_rate(8192) == pytest.approx(rate) for rate in everywhere)
    assert base_rate(50) == base_rate(50)
    assert (base_rate(50) * 50) % 1 == pytest.approx(0, abs=1e-9)
    assert len({base_rate(50, seed) for seed in range(5)}) > 1


def test_the_encoder_sees_the_tokens(tmp_path: Path) -> None:
    directions = torch.zeros(len(WORDS), 4)
    directions[GATE, 1] = 1
    point = Point(architecture="relu", l1=1, expansion=1, table="none", encoder_input="without_unigram")
    eye, zeros = torch.eye(4), torch.zeros(4)
    sae = SAE(point, eye, eye.clone(), zeros, zeros.clone(), unigram_directions=directions).requires_grad_(False)
    x = firing()
    x[..., 3] = 0
    x[:, 3, 2] = 1
    _, frame = measure_phrases(sae, write_residuals(tmp_path, x, IDS), [BRIDGED], SETTINGS)
    # The feature of the phrase is silent on its second token.
    assert frame[["feature", "score"]].to_numpy().tolist() == [[0, 0]]


def test_residuals_of_other_tokens(tmp_path: Path) -> None:
    cache = write_residuals(tmp_path, firing(), IDS)
    with pytest.raises(ValueError, match=r"index\.json: made from other tokens than the phrase ' Golden Gate'; find"):
        measure_phrases(identity_sae(4), cache, [BRIDGED._replace(positions=(2,) * 5)], SETTINGS)


def test_nothing_to_measure(tmp_path: Path) -> None:
    rows, frame = measure_phrases(identity_sae(4), write_residuals(tmp_path, firing(), IDS), [], SETTINGS)
    assert rows == []
    write_phrase_table(tmp_path / "phrases.csv", frame)
    assert (tmp_path / "phrases.csv").read_text() == "text,ids,count,n_measured,feature,base_rate,recall,score\n"


# --- files -----------------------------------------------------------------------------------------------------------


def test_phrases_that_are_written_are_read(tmp_path: Path) -> None:
    phrases = find_phrases(*random_text(), decode, SETTINGS)
    assert phrases
    write_phrases(tmp_path / "phrases.json", phrases)
    assert read_phrases(tmp_path / "phrases.json") == phrases
    write_phrases(tmp_path / "phrases.json", [])
    assert read_phrases(tmp_path / "phrases.json") == []


@pytest.mark.parametrize("content", [None, "[{", '[{"tokens": [1]}]', '{"a": 1}', "3"])
def test_reading_what_is_no_list_of_phrases(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "phrases.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"phrases\.json: not a list of phrases"):
        read_phrases(path)


def test_the_table_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "phrases.csv"
    _, frame = measure_phrases(identity_sae(4), write_residuals(tmp_path, firing(), IDS), [BRIDGED], SETTINGS)
    write_phrase_table(path, frame.assign(recall=pd.Series([[1 / 3, 1.0]], dtype=object)))
    assert path.read_text().splitlines() == [
        "text,ids,count,n_measured,feature,base_rate,recall,score",
        ' Golden Gate,"[3, 4]",7,5,1,0.5,"[0.333333, 1.0]",0.5',
    ]
    read = pd.read_csv(path)
    assert json.loads(read["recall"][0]) == [0.333333, 1.0]
