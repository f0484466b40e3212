"""The choice of held-out documents and pieces, on documents of a token per character."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tsae.profile.inputs import Tokens
from tsae.text.documents import Catalogue
from tsae.text.heldout import Piece, hold_out, lengths_of_pieces


def settings(n_documents: int, share: float, text: int = 120, seed: int = 0) -> Tokens:
    """Settings for a split of this many tokens of text."""
    made = Tokens(
        n_ctx=4, train=1, heldout=text // 3 * 4, heldout_documents=n_documents, heldout_share=share, seed=seed
    )
    assert made.heldout_text == text
    return made


def choose(lengths: Sequence[Sequence[int]], wanted: Tokens) -> dict[int, list[Piece]]:
    """Pieces by source in document order, for documents with these lengths by source."""
    whole = np.array([length for each in lengths for length in each])
    sources = np.repeat(np.arange(len(lengths)), [len(each) for each in lengths])
    everywhere = np.ones(len(whole), dtype=bool)
    catalogue = Catalogue(Path(), whole.cumsum() - whole, sources, whole, everywhere)
    pieces = hold_out(catalogue, np.arange(len(whole)), lambda lines: iter(whole[lines].tolist()), wanted)
    lines = [piece.line for piece in pieces]
    assert lines == sorted(set(lines))
    assert sum(sizes(pieces)) == wanted.heldout_text
    for piece in pieces:
        assert 1 <= piece.stop - piece.start <= wanted.heldout_share * wanted.heldout_text + 1e-9
        assert 0 <= piece.start < piece.stop <= whole[piece.line]
    return {source: [piece for piece in pieces if sources[piece.line] == source] for source in range(len(lengths))}


def sizes(pieces: Sequence[Piece]) -> list[int]:
    return [piece.stop - piece.start for piece in pieces]


def test_pieces_by_hand() -> None:
    assert lengths_of_pieces([1, 2, 5, 9], 10) == [1, 2, 4, 3]
    assert lengths_of_pieces([9, 5, 2, 1], 17) == [9, 5, 2, 1]
    assert lengths_of_pieces([9, 5, 2, 1], 16) == [8, 5, 2, 1]
    assert lengths_of_pieces([7, 7, 7], 2) == [1, 1, 0]
    assert lengths_of_pieces([], 0) == []


def test_sources_have_their_share_of_the_corpus() -> None:
    # 40 documents of 24 tokens and 40 of 8 are 960 and 320 tokens: 90 and 30 of 120 are held out, at most 6 per document.
    pieces = choose([[24] * 40, [8] * 40], settings(20, 0.05))
    assert sizes(pieces[0]) == [6] * 15
    assert sizes(pieces[1]) == [6] * 5
    assert [piece.line for piece in pieces[1]] == [40, 41, 42, 43, 44]


def test_more_documents_mean_shorter_pieces() -> None:
    # Ten more than needed come from the first source, whose turn is first; its 90 tokens then come from 25 documents.
    pieces = choose([[24] * 60, [8] * 60], settings(30, 0.05))
    assert sizes(pieces[0]) == [4] * 15 + [3] * 10
    assert sizes(pieces[1]) == [6] * 5


def test_short_documents_are_held_out_whole() -> None:
    pieces = choose([[2, 20, 4, 20] * 20], settings(20, 0.1))
    # With at most 12 tokens per document, 16 documents would do. With 20 documents, none has more than 9.
    assert sizes(pieces[0]) == [2, 9, 4, 9] * 5


def test_a_long_document_is_left_to_training_while_others_suffice() -> None:
    # At most 6 tokens of a document may be held out, so over three quarters of 25 tokens would be lost.
    pieces = choose([[25, 24] * 40], settings(20, 0.05))
    assert [piece.line for piece in pieces[0]] == list(range(1, 41, 2))
    # If the others do not suffice, the shortest of these are taken.
    pieces = choose([[40, 25] * 20 + [24] * 10], settings(20, 0.05))
    assert [piece.line for piece in pieces[0]] == [*range(1, 21, 2), *range(40, 50)]


def test_half_of_every_source_is_left_to_training() -> None:
    # The second source has half of the tokens and 10 documents: 5 of them hold 30 of its 60, and the first gives the rest.
    pieces = choose([[4] * 50, [20] * 10], settings(20, 0.05))
    assert sizes(pieces[1]) == [6] * 5
    assert sum(sizes(pieces[0])) == 90
    with pytest.raises(ValueError, match=r"^tokens\.heldout: 160 needs 120 tokens .* at most 6 tokens .*, hold 110; "):
        choose([[4] * 40, [20] * 10], settings(20, 0.05))


def test_documents_of_a_few_tokens_do_not_make_up_the_number() -> None:
    # The second source has a hundredth of the tokens: 2 to 5 documents would do, and ten times its share of 100 are 10.
    wanted = settings(100, 0.05, text=6000)
    with pytest.raises(ValueError, match=r"^tokens\.heldout_documents: 100 .* of the 280 .*, at most 50 can be"):
        choose([[2970] * 80, [12] * 200], wanted)
    pieces = choose([[2970] * 190, [30] * 190], wanted)
    assert sizes(pieces[0]) == [66] * 90
    assert sizes(pieces[1]) == [6] * 10


def test_pieces_lie_anywhere_and_the_seed_says_where() -> None:
    def starts(seed: int) -> list[int]:
        return [piece.start for piece in choose([[20] * 300], settings(100, 0.01, seed=seed, text=600))[0]]

    assert starts(0) == starts(0) != starts(1)
    assert set(starts(0)) == set(range(15))  # of pieces of 6 tokens in 20: each place from 0 to 14
