"""What all jobs of a stage do together, and what the largest of them takes."""

from typing import NamedTuple


class Cost(NamedTuple):
    """What all jobs of a stage do together, and what the largest of them takes."""

    stage: str
    """Rule of the workflow."""
    jobs: int
    """Processes."""
    loads_model: bool = False
    """Whether they load the language model."""
    on_gpu: bool = False
    """Whether they use a GPU if there is one."""
    model_tokens: float = 0
    """Tokens that go through the model or a part of it."""
    trained_tokens: float = 0
    """Tokens that SAEs are trained on."""
    model_flops: float = 0
    """Arithmetic of the language model."""
    dense_flops: float = 0
    """Arithmetic of dense products with an SAE or a table."""
    sparse_flops: float = 0
    """Arithmetic that touches the active features of a token alone."""
    read_bytes: float = 0
    """Cached residuals that are read, shuffled and put into batches."""
    text_tokens: float = 0
    """Tokens of text that are read, tokenised or counted."""
    memory: float = 0
    """Memory of the largest job without a GPU [bytes]."""
    gpu_memory: float = 0
    """GPU memory of the largest job [bytes]."""

    @property
    def flops(self) -> float:
        """All arithmetic."""
        return self.model_flops + self.dense_flops + self.sparse_flops
