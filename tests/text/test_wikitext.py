"""Prose from wikitext."""

import pytest

from tsae.text.wikitext import strip_wikitext


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("'''Bold''' and ''slanted'' text", "Bold and slanted text"),
        ("A [[cat]], a [[Dog|hound]] and [http://a.org a site]; [http://b.org]", "A cat, a hound and a site;"),
        ("Text<ref>A {{cite|b}}</ref> goes on<ref name=a/>.", "Text goes on."),
        ("Before<!-- hidden --> after {{Infobox|a=b|c={{d}}}}.", "Before after."),
        ("One\n{| class=x\n! head\n|-\n| cell || [[link]]\n|}\nTwo", "One\n\nTwo"),
        ("[[File:Cat.jpg|thumb|A [[cat]] asleep]]A cat.\n[[Category:Cats]]\n[[fr:Chat]]", "A cat."),
        ("See [[:Category:Cats]] and [[:fr:Chat|the French]]", "See Category:Cats and the French"),
        ("[[Ben-Hur: A Tale]] stays", "Ben-Hur: A Tale stays"),
        ("<gallery>\nFile:A.jpg|x\n</gallery>Let <math>x^2</math> be H<sub>2</sub>O", "Let be H2O"),
        ("== Use ==\n* one\n** two\n# three\n: four\n; five", "Use\none\ntwo\nthree\nfour\nfive"),
        (
            "Text\n== See also ==\n* [[a]]\n=== More ===\n* b\n== Use ==\nEnd\n== References ==\n{{reflist}}",
            "Text\nUse\nEnd",
        ),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("a&nbsp;b &amp; c &ndash; d", "a b & c \N{EN DASH} d"),
        ("A fen ({{IPA|x}}; from ''fenn'') or a bog ({{IPA|y}}) is wet", "A fen (from fenn) or a bog is wet"),
        ("{{convert|3|km|mi}} long, {{convert|1|to|2|m2|ft2|1}} wide", "3 km long, 1 to 2 m2 wide"),
        ("{{lang|la|''pax''}}{{snd}}{{nihongo|peace|平和|heiwa}}", "pax \N{EN DASH} peace"),
        ("__NOTOC__<nowiki>[[raw]]</nowiki> a<br/>b", "[[raw]] a\nb"),
        ("{{quote|Speech is [[silver]]|Anon}}", "Speech is silver"),
        ("", ""),
    ],
)
def test_strip_wikitext(wikitext: str, prose: str) -> None:
    assert strip_wikitext(wikitext) == prose
