"""`radit train-retriever`: LSR (eqs. 4-5) on stored scores, or the losses it must be held against."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

from radit_jax import files, runs, sharding
from radit_jax.config import TrainRetrieverConfig
from radit_jax.data.batches import lsr_batches, query_lengths
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedStore, ScoreStore
from radit_jax.data.mixture import mixture_of
from radit_jax.data.negatives import read_negatives
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
from radit_jax.plan.flops import query_batch_flops
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.index import load_index
from radit_jax.sharding import RowShare
from radit_jax.training.loop import Batch
from radit_jax.training.step import (
  Objective,
  contrastive_objective,
  emdr2_objective,
  lsr_objective,
  watched_lsr_objective,
)
from radit_jax.verbs import cards, tuning
from radit_jax.verbs.examine import searching


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
    UserError: stale scores, an index of another encoder or of other passages, k above the passages scored, stores that
      no cross-encoder re-ranked, or not the same one, no gold passages to contrast, negatives of other questions or
      passages.
    TrainingError: repeated non-finite steps.
    Preempted: SIGTERM; the state is saved.
  """
  root = files.location(config.workdir)
  stores = {"train": RetrievedStore(config.retrieved), "dev": RetrievedStore(config.dev_retrieved)}
  passage_encoder = passage_encoder_of(config.encoder, config.passage_encoder, config.embedding)
  of = tuning.passages_of(**stores)
  index = load_index(
    config.index,
    verify="sizes",
    encoder_fingerprint=passage_encoder,
    passages_fingerprint=of,
    resident=False,
    searched=config.loop.asked_questions is not None,
  )
  for name, store in stores.items():
    if config.k > store.manifest["k"]:
      raise UserError(f"k = {config.k} passages per question, the {name} store holds {store.manifest['k']}; lower --k")
    if config.loss == "distill" and "cross_encoder" not in store.manifest:
      raise UserError(
        f"{store.path}: its scores are a query encoder's, and no teacher; `radit rerank --cross-encoder` makes a store "
        "that has a cross-encoder's"
      )
  for field in ("cross_encoder", "score_temperature") if config.loss == "distill" else ():
    one, other = (store.manifest[field] for store in stores.values())
    if one != other:
      raise UserError(
        f"{config.dev_retrieved}: re-ranked with {field} {other}, {config.retrieved} with {one}; re-rank both with the "
        "same cross-encoder"
      )
  scores: dict[str, ScoreStore | None] = {"train": None, "dev": None}
  if config.loss in ("lsr", "emdr2"):
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
  negatives = None
  if config.negatives is not None:
    negatives = read_negatives(config.negatives, index.manifest["passages_fingerprint"])
    _check_negatives(config, negatives, stores["train"], len(index))
    inputs["negatives"] = files.sha256_file(config.negatives)
  passages = None
  if config.passages is not None:
    passages = version_of(index.manifest["passages_fingerprint"], PassageStore(config.passages), config.index)
    inputs["passages"] = passages.fingerprint
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
        negatives=negatives if name == "train" else None,
        own_scores=config.loss == "distill",
        shuffle_teacher=loop.seed if config.shuffle_teacher else None,
        start=start,
        share=share,
      )
    )

  model, figures = tuning.tune(
    encoder,
    _objective(config, temperature, stores["train"].manifest["score_temperature"]),
    lambda start: stream("train", plans.train, loop.batch_size, start),
    lambda: stream("dev", plans.dev, plans.dev_size),
    first_batch=lambda: next(stream("train", plans.train, loop.batch_size, share=RowShare())),
    config=config,
    verb=verb,
    wanted=wanted,
    total_steps=len(plans.train),
    tokenizer=tokenizer,
    mesh=mesh,
    stage=f"train retriever ({'shuffled ' if config.shuffle_teacher else ''}{config.loss})",
    progress=progress,
    forward_flops=functools.partial(query_batch_flops, encoder.body.config),
    examine=searching(
      config, stores["dev"], index, passages, tokenizer, mesh, max_tokens=max_tokens, query_prompt=prompt
    ),
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


def _check_negatives(
  config: TrainRetrieverConfig, negatives: Mapping[str, Sequence[int]], retrieved: RetrievedStore, count: int
) -> None:
  """Refuses negatives of questions that are not trained on, and rows that no passage has."""
  known = {example.id for example in retrieved}
  if other := next((question for question in negatives if question not in known), None):
    raise UserError(
      f"{config.negatives}: question {other!r} is not among the {len(known)} of {retrieved.path}; mine from this store"
    )
  largest = max((row for rows in negatives.values() for row in rows), default=0)
  if largest >= count:
    raise UserError(f"{config.negatives}: row {largest}, but {config.index} holds {count} passages; mine again")


def _objective(config: TrainRetrieverConfig, temperature: float, teacher_temperature: float) -> Objective:
  """The loss; ``teacher_temperature`` is the one at which eq. 2 reads the scores of the store."""
  if config.loss == "contrastive":
    return functools.partial(contrastive_objective, score_temperature=temperature)
  if config.loss == "emdr2":
    return functools.partial(emdr2_objective, score_temperature=temperature)
  if config.loss == "distill":
    return functools.partial(
      lsr_objective,
      score_temperature=temperature,
      lm_temperature=teacher_temperature,
      score="log_prob",
      direction=config.direction,
    )
  return functools.partial(
    watched_lsr_objective,
    score_temperature=temperature,
    lm_temperature=config.lm_temperature,
    score=config.score,
    direction=config.direction,
  )
