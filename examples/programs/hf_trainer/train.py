r"""Train a Llama-shaped language model on the bytes of a text file with Hugging Face's Trainer.

It knows nothing of scalelab: a script of your own can look like this. The arguments of the model
are below; all others are those of `transformers.TrainingArguments`.

    python train.py --train_file text.txt --num_hidden_layers 2 --hidden_size 64 \
        --num_attention_heads 2 --num_key_value_heads 2 --intermediate_size 176 \
        --block_size 64 --output_dir out --max_steps 40
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers.hf_argparser import HfArgumentParser
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.trainer import Trainer
from transformers.trainer_utils import set_seed
from transformers.training_args import TrainingArguments

N_BYTES = 256
TEXT = (".txt", ".md", ".py")


@dataclass
class ModelArguments:
    """Data and shape of the model."""

    train_file: Path
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    block_size: int
    head_dim: int | None = None
    eval_file: Path | None = None
    eval_blocks: int = 64


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Consecutive blocks of bytes; the labels are the inputs, which the model shifts."""

    def __init__(self, tokens: torch.Tensor, block_size: int) -> None:
        n_blocks = len(tokens) // block_size
        self.blocks = tokens[: n_blocks * block_size].view(n_blocks, block_size)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.blocks[index].long()
        return {"input_ids": tokens, "labels": tokens}


def read(path: Path) -> torch.Tensor:
    """Return the bytes of a file, or of the text files below a folder, in the order of paths."""
    files = sorted(f for f in path.rglob("*") if f.suffix in TEXT) if path.is_dir() else [path]
    return torch.frombuffer(
        bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8
    )


def main() -> None:
    """Train, evaluate and save what the Trainer saves."""
    parser = HfArgumentParser((ModelArguments, TrainingArguments))
    shape, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=N_BYTES,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            # Without it, some versions keep LlamaConfig's own width and N is another one.
            head_dim=shape.head_dim or shape.hidden_size // shape.num_attention_heads,
            max_position_embeddings=shape.block_size,
            tie_word_embeddings=False,
        )
    )
    tokens = read(shape.train_file)
    n_eval = shape.eval_blocks * shape.block_size
    held_out = tokens[-n_eval:] if shape.eval_file is None else read(shape.eval_file)[:n_eval]
    training = tokens[:-n_eval] if shape.eval_file is None else tokens
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Blocks(training, shape.block_size),
        eval_dataset=Blocks(held_out, shape.block_size),
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    results = trainer.evaluate()
    trainer.save_model()
    trainer.save_metrics("eval", results)
    trainer.save_state()


if __name__ == "__main__":
    main()
