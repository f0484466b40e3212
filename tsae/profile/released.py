"""The section of SAEs that the authors released."""

from typing import Literal

from pydantic import Field

from tsae.profile.point import EncoderInput
from tsae.profile.section import LocalPath, Section

WithoutO = Literal["relu", "topk"]


class Released(Section):
    """SAEs that the authors released, evaluated beside ours."""

    folder: LocalPath = Field(
        description="Folder of their files, such as gpt2_resid_pre_8_ot30.pt, or of folders of these; relative to the "
        "working directory. Only files that end in .pt are read"
    )
    without_o: WithoutO = Field(
        "relu",
        description="Activation of SAEs without the o of TopK in their name, such as gpt2_resid_pre_8_t8; topk reads "
        "the number as k. An assumption: the files do not say. Gated SAEs are recognised by their tensors",
    )
    encoder_input: dict[str, EncoderInput] = Field(
        {".": "without_unigram", "old": "without_unigram"},
        description="What the encoder of a tokenized SAE without an o sees, by folder (. is released.folder itself); "
        "residual in other folders. An assumption: the files do not say",
    )
