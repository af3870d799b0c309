"""`radit train-retriever`: LSR (eqs. 4-5) on stored scores, or the contrastive loss it must be held against."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from radit_jax import files, runs, sharding
from radit_jax.config import TrainRetrieverConfig
from radit_jax.data.batches import lsr_batches, query_lengths
from radit_jax.data.examples import RetrievedStore, ScoreStore
from radit_jax.data.mixture import mixture_of
from radit_jax.data.plan import PlannedBatch
from radit_jax.errors import UserError
from radit_jax.models.pretrained import (
  check_vocabulary,
  encoder_temperature,
  fingerprint,
  load_encoder,
  load_tokenizer,
  passage_encoder_of,
  save_encoder,
)
from radit_jax.owner import one_owner
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.index import load_index
from radit_jax.sharding import RowShare
from radit_jax.training.loop import Batch
from radit_jax.training.step import Objective, contrastive_objective, lsr_objective
from radit_jax.verbs import cards, tuning


@dataclasses.dataclass(frozen=True)
class TrainRetrieverResult:
  """What a tuning leaves.

  Attributes:
    query_encoder: sentence-transformers directory of the tuned query encoder.
    steps: optimizer steps.
    best_step: the step that was exported.
    best_dev_loss: its mean loss per dev question, in nats.
    nonfinite_steps: steps left out.
    programs: query lengths that occur; one program is compiled for each.
  """

  query_encoder: str
  steps: int
  best_step: int
  best_dev_loss: float
  nonfinite_steps: int
  programs: tuple[int, ...]

  def summary(self) -> str:
    """A line for the command line."""
    return (
      f"{self.steps} steps, best dev loss {self.best_dev_loss:.4f} at step {self.best_step}; queries of "
      f"{', '.join(map(str, self.programs))} tokens; {self.nonfinite_steps} steps left out: {self.query_encoder}"
    )


@one_owner
def train_retriever(config: TrainRetrieverConfig, *, progress: Progress = silent) -> TrainRetrieverResult:
  """Tunes the query encoder against stored passage embeddings and exports the best checkpoint.

  The passage encoder is not even loaded: only the query encoder trains, so the index never goes stale.

  Args:
    config: see :class:`radit_jax.config.TrainRetrieverConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: stale scores, an index of another encoder, k above the passages scored, no gold passages to contrast.
    TrainingError: repeated non-finite steps.
    Preempted: SIGTERM; the state is saved.
  """
  root = files.location(config.workdir)
  stores = {"train": RetrievedStore(config.retrieved), "dev": RetrievedStore(config.dev_retrieved)}
  passage_encoder = passage_encoder_of(config.encoder, config.passage_encoder, config.embedding)
  index = load_index(config.index, verify="sizes", encoder_fingerprint=passage_encoder, resident=False)
  for name, store in stores.items():
    if config.k > store.manifest["k"]:
      raise UserError(f"k = {config.k} passages per question, the {name} store holds {store.manifest['k']}; lower --k")
    if store.manifest["passages"] != index.manifest["passages_fingerprint"]:
      raise UserError(f"the {name} store was retrieved from another passage store than {config.index} holds")
  scores: dict[str, ScoreStore | None] = {"train": None, "dev": None}
  if config.loss == "lsr":
    for name, path in (("train", config.scores), ("dev", config.dev_scores)):
      assert path is not None  # checked by the config
      scores[name] = opened = ScoreStore(path, retrieved=stores[name])
      if config.k > opened.manifest["k"]:
        raise UserError(f"k = {config.k} passages per question, {path} scores {opened.manifest['k']}; lower --k")
  inputs = {
    "encoder": fingerprint(config.encoder, config.embedding),
    "passage_encoder": passage_encoder,
    "retrieved": stores["train"].fingerprint,
    "dev_retrieved": stores["dev"].fingerprint,
    "index": index.manifest["fingerprint"],
    "scores": "none" if scores["train"] is None else scores["train"].fingerprint,
    "dev_scores": "none" if scores["dev"] is None else scores["dev"].fingerprint,
  }
  wanted = runs.recipe(config, inputs=inputs)
  verb = f"train-retriever {config.loss}"
  done = tuning.finished_result(TrainRetrieverResult, "query_encoder", config.workdir, verb, wanted, config.loop)
  if done is not None:
    return done

  mesh = sharding.make_mesh(config.mesh)
  tuning.check_batch(config.loop, mesh)
  load = functools.partial(load_encoder, config.encoder, remat=config.remat, options=config.embedding)
  encoder = tuning.load_for_tuning(
    load, config.lora, mesh=mesh, seed=config.loop.seed, master_dtype=config.optimizer.master_dtype
  )
  tokenizer = load_tokenizer(config.encoder)
  check_vocabulary(tokenizer, encoder.body.config.vocab_size, config.encoder)
  temperature = encoder_temperature(config.encoder, config.embedding)
  max_tokens, prompt = encoder.config.max_tokens, encoder.config.query_prompt
  loop = config.loop
  lengths = {n: query_lengths(s, tokenizer, max_tokens=max_tokens, prompt=prompt) for n, s in stores.items()}
  mixture = mixture_of(stores["train"].manifest)
  plans = tuning.make_plans(lengths["train"], lengths["dev"], loop=loop, mesh=mesh, mixture=mixture)

  share = sharding.row_share(mesh)

  def stream(
    name: str, of: Sequence[PlannedBatch], size: int, start: int = 0, share: RowShare = share
  ) -> Iterator[Batch]:
    return iter(
      lsr_batches(
        stores[name],
        scores[name],
        index,
        tokenizer,
        of,
        k=config.k,
        max_tokens=max_tokens,
        prompt=prompt,
        batch_size=size,
        gold_first=config.loss == "contrastive",
        shuffle_teacher=loop.seed if config.shuffle_teacher else None,
        start=start,
        share=share,
      )
    )

  model, figures = tuning.tune(
    encoder,
    _objective(config, temperature),
    lambda start: stream("train", plans.train, loop.batch_size, start),
    lambda: stream("dev", plans.dev, plans.dev_size),
    first_batch=lambda: next(stream("train", plans.train, loop.batch_size, share=RowShare())),
    config=config,
    verb=verb,
    wanted=wanted,
    total_steps=len(plans.train),
    tokenizer=tokenizer,
    mesh=mesh,
    stage=f"train retriever ({'shuffled lsr' if config.shuffle_teacher else config.loss})",
    progress=progress,
  )
  model = tuning.export_tuned(model, load, config, base=config.encoder)
  recipe = cards.encoder_recipe(config, stores["train"], inputs, tuning.card_figures(figures))
  save_encoder(
    model,
    tokenizer,
    root / "query_encoder",
    score_temperature=temperature,
    passage_encoder=passage_encoder,
    recipe=recipe,
    beside={cards.CARD: cards.encoder_card(recipe)},
  )
  result = TrainRetrieverResult(query_encoder=str(root / "query_encoder"), programs=plans.train.buckets, **figures)
  tuning.write_result(config.workdir, loop, result)
  return result


def _objective(config: TrainRetrieverConfig, temperature: float) -> Objective:
  if config.loss == "contrastive":
    return functools.partial(contrastive_objective, score_temperature=temperature)
  return functools.partial(
    lsr_objective,
    score_temperature=temperature,
    lm_temperature=config.lm_temperature,
    score=config.score,
    direction=config.direction,
  )
