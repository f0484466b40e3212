"""SAEs that the authors released, evaluated beside ours."""

from typing import Literal

from pydantic import Field

from tsae.profile.point import EncoderInput
from tsae.profile.section import LocalPath, Section

WithoutO = Literal["relu", "topk"]


class Released(Section):
    """SAEs that the authors released, evaluated beside ours."""

    folder: LocalPath = Field(
        description="Folder that holds their files, such as gpt2_resid_pre_8_ot30.pt, or folders of them; relative to the "
        "working directory. Files that do not end in .pt are ignored"
    )
    without_o: WithoutO = Field(
        "relu",
        description="Activation of SAEs whose names lack the o of TopK, such as gpt2_resid_pre_8_t8; topk reads the number as "
        "k. An assumption: the files do not say. Gated SAEs are recognised by their tensors",
    )
    encoder_input: dict[str, EncoderInput] = Field(
        {".": "without_unigram", "old": "without_unigram"},
        description="What the encoder of a tokenized SAE without an o sees, by the name of its folder (. is released.folder "
        "itself); in folders not named here, residual. An assumption: the files do not say",
    )
