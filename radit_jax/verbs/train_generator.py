"""`radit train-generator`: RALT, or plain instruction tuning on the same examples without passages."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax

from radit_jax import files, runs, sharding
from radit_jax.config import TrainGeneratorConfig
from radit_jax.data.batches import parallel_context_batches, row_lengths
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.mixture import mixture_of
from radit_jax.data.plan import PlannedBatch
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.models.pretrained import (
  check_vocabulary,
  fingerprint,
  load_end_ids,
  load_generator,
  load_tokenizer,
  save_generator,
)
from radit_jax.owner import one_owner
from radit_jax.plan.flops import generator_batch_flops
from radit_jax.progress import Progress, silent
from radit_jax.sharding import RowShare
from radit_jax.training.loop import Batch
from radit_jax.training.step import ralt_objective
from radit_jax.verbs import cards, tuning
from radit_jax.verbs.examine import answering


@dataclasses.dataclass(frozen=True)
class TrainGeneratorResult:
  """What a tuning leaves.

  Attributes:
    generator: Hugging Face directory of the tuned generator.
    steps: optimizer steps.
    best_step: the step that was exported.
    best_dev_loss: its mean negative log-likelihood per answer token on the dev examples, in nats.
    nonfinite_steps: steps left out.
    programs: row lengths that occur; a training or a dev program is compiled for each.
    cut_passages: rows whose passage was cut to fit.
    cut_questions: rows whose question was cut to fit.
  """

  generator: str
  steps: int
  best_step: int
  best_dev_loss: float
  nonfinite_steps: int
  programs: tuple[int, ...]
  cut_passages: int
  cut_questions: int

  def summary(self) -> str:
    """A few lines for the command line."""
    return (
      f"{self.steps} steps, best dev loss {self.best_dev_loss:.4f} at step {self.best_step}; rows of "
      f"{', '.join(map(str, self.programs))} tokens ({len(self.programs)} programs); cut to fit: {self.cut_passages} "
      f"passages, {self.cut_questions} questions; {self.nonfinite_steps} steps left out: {self.generator}"
    )


@one_owner
def train_generator(config: TrainGeneratorConfig, *, progress: Progress = silent) -> TrainGeneratorResult:
  """Tunes the generator and exports the best checkpoint; the same call continues a run.

  Args:
    config: see :class:`radit_jax.config.TrainGeneratorConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the passages retrieved, foreign stores or those of two versions of the passages, a batch size the
      mesh does not divide.
    TrainingError: repeated non-finite steps.
    Preempted: SIGTERM; the state is saved.
  """
  root = files.location(config.workdir)
  stores = {"train": RetrievedStore(config.retrieved), "dev": RetrievedStore(config.dev_retrieved)}
  for name, store in stores.items():
    if config.method == "ralt" and config.k > store.manifest["k"]:
      raise UserError(f"k = {config.k} passages per example, the {name} store holds {store.manifest['k']}; lower --k")
  passages = version_of(tuning.passages_of(**stores), PassageStore(config.passages), config.retrieved)
  tokenizer = load_tokenizer(config.generator)
  prompt = Prompt(tokenizer, config.prompt, end_ids=load_end_ids(config.generator))
  inputs = {
    "prompt": prompt.hash,
    "generator": fingerprint(config.generator),
    "retrieved": stores["train"].fingerprint,
    "dev_retrieved": stores["dev"].fingerprint,
    "passages": passages.fingerprint,
  }
  wanted = runs.recipe(config, inputs=inputs)
  verb = f"train-generator {config.method}"
  done = tuning.finished_result(TrainGeneratorResult, "generator", config.workdir, verb, wanted, config.loop)
  if done is not None:
    return done

  # All that can be wrong with the input is found before the directory is taken.
  mesh = sharding.make_mesh(config.mesh)
  tuning.check_batch(config.loop, mesh)
  load = functools.partial(load_generator, config.generator, dtype=config.dtype, remat=config.remat)
  generator = tuning.load_for_tuning(
    load, config.lora, mesh=mesh, seed=config.loop.seed, master_dtype=config.optimizer.master_dtype
  )
  prompt.check_positions(generator.config.max_positions)
  check_vocabulary(tokenizer, generator.config.vocab_size, config.generator)
  loop, k, with_passages = config.loop, config.k, config.method == "ralt"
  if not with_passages:
    k = 1
  lengths = {n: row_lengths(s, passages, prompt, k=k, with_passages=with_passages) for n, s in stores.items()}
  mixture = mixture_of(stores["train"].manifest)
  answer_tokens = max(x.answer for x in lengths.values())
  if config.pack_tokens is None:
    plans = tuning.make_plans(lengths["train"].rows, lengths["dev"].rows, loop=loop, mesh=mesh, mixture=mixture)
  else:
    with jax.set_mesh(mesh):
      share = generator.shares_prefixes
    plans = tuning.make_packed_plans(
      lengths["train"], lengths["dev"], config.pack_tokens, loop=loop, mesh=mesh, mixture=mixture, share=share
    )
  generator.max_segments = plans.segments

  part = sharding.row_share(mesh)

  def stream(
    name: str, of: Sequence[PlannedBatch], size: int, seed: int | None, start: int = 0, share: RowShare = part
  ) -> Iterator[Batch]:
    return iter(
      parallel_context_batches(
        stores[name],
        passages,
        prompt,
        of,
        k=k,
        with_passages=with_passages,
        batch_size=size,
        answer_tokens=answer_tokens,
        seed=seed,
        start=start,
        share=share,
      )
    )

  model, figures = tuning.tune(
    generator,
    ralt_objective,
    lambda start: stream("train", plans.train, loop.batch_size, loop.seed, start),
    lambda: stream("dev", plans.dev, plans.dev_size, None),
    first_batch=lambda: next(stream("train", plans.train, loop.batch_size, loop.seed, share=RowShare())),
    config=config,
    verb=verb,
    wanted=wanted,
    total_steps=len(plans.train),
    tokenizer=tokenizer,
    mesh=mesh,
    stage=f"train generator ({config.method})",
    progress=progress,
    forward_flops=functools.partial(generator_batch_flops, generator.config),
    examine=answering(config, stores["dev"], passages, prompt, tokenizer, mesh),
  )
  model = tuning.export_tuned(model, load, config, base=config.generator)
  recipe = cards.generator_recipe(config, prompt, stores["train"], inputs, tuning.card_figures(figures))
  save_generator(model, tokenizer, root / "generator", beside=cards.generator_files(recipe))
  result = TrainGeneratorResult(
    generator=str(root / "generator"),
    programs=tuple(sorted({*plans.train.buckets, *(b.bucket_tokens for b in plans.dev)})),
    cut_passages=lengths["train"].cut_passages,
    cut_questions=lengths["train"].cut_questions,
    **figures,
  )
  tuning.write_result(config.workdir, loop, result)
  return result
