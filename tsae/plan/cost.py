"""The cost of a stage."""

from typing import NamedTuple

GPU_PROCESS_BYTES = 0.6e9  # memory of CUDA itself in a process
# Memory of a process before its first tensor: with PyTorch, and with what loads a language model too.
PROCESS_BYTES, MODEL_PROCESS_BYTES = 0.45e9, 0.6e9


class Cost(NamedTuple):
    """Work of all jobs of a stage together, and memory of the largest job."""

    stage: str
    """Rule of the workflow."""
    jobs: int
    """Processes."""
    loads_model: bool = False
    """Whether they load the language model."""
    on_gpu: bool = False
    """Whether they use a GPU if there is one."""
    model_tokens: float = 0
    """Tokens through the model or a part of it."""
    trained_tokens: float = 0
    """Tokens that SAEs are trained on."""
    model_flops: float = 0
    """Arithmetic of the language model [FLOP]."""
    dense_flops: float = 0
    """Dense products with an SAE or a table [FLOP]."""
    sparse_flops: float = 0
    """Work on the active features of tokens only [FLOP]."""
    read_bytes: float = 0
    """Cached residuals that are read, shuffled and batched [bytes]."""
    text_tokens: float = 0
    """Tokens of text that are read, tokenised or counted."""
    memory: float = 0
    """Memory of the largest job, computing without a GPU [bytes]."""
    gpu_memory: float = 0
    """GPU memory of the largest job [bytes]."""

    @property
    def flops(self) -> float:
        """All arithmetic [FLOP]."""
        return self.model_flops + self.dense_flops + self.sparse_flops
