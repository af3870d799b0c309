"""Run in two processes: what each reads and holds of the data, printed as JSON."""

import json
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from radit_jax import hosts, sharding
from radit_jax.config import MeshConfig, PromptConfig
from radit_jax.data.batches import parallel_context_batches, row_lengths
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.plan import RunPlan
from radit_jax.data.prompts import Prompt
from radit_jax.models.pretrained import load_encoder, load_tokenizer
from radit_jax.retrieval.embed import embed_passages


def counted(store):
  """The store, and the list that its reads are added to."""
  reads, many = [], store.many

  def read(rows):
    reads.append([int(row) for row in rows])
    return many(reads[-1])

  store.many = read
  return store, reads


def reads(stores, generator, encoder, out):
  """Rows of the stores that this process reads: to measure, in each step of an epoch, and to encode the corpus."""
  mesh = sharding.make_mesh()
  retrieved, rows = counted(RetrievedStore(f"{stores}/retrieved/train"))
  passages = PassageStore(f"{stores}/passages")
  prompt = Prompt(load_tokenizer(generator), PromptConfig(max_tokens=96, max_passage_tokens=40, max_answer_tokens=8))
  lengths = row_lengths(retrieved, passages, prompt, k=2, with_passages=True)
  measured = rows.copy()
  rows.clear()
  plan = RunPlan(lengths.rows, batch_size=8, seed=0)
  options = {"k": 2, "with_passages": True, "batch_size": 8, "answer_tokens": lengths.answer}
  share = sharding.row_share(mesh)
  ids = [i for i, _ in parallel_context_batches(retrieved, passages, prompt, plan, share=share, **options)]
  texts, encoded = counted(PassageStore(f"{stores}/passages"))
  model = load_encoder(encoder, mesh=mesh)
  fields = {"encoder_fingerprint": "e", "passages_fingerprint": "p"}
  embed_passages(
    model, load_tokenizer(encoder), texts, out, max_tokens=64, batch_size=16, fields=fields, mesh=mesh, shard_size=24
  )
  together = encoded.copy()
  encoded.clear()
  local = sharding.make_mesh(devices=jax.local_devices())
  embed_passages(
    load_encoder(encoder, mesh=local),
    load_tokenizer(encoder),
    texts,
    f"{out}-each",
    max_tokens=64,
    batch_size=16,
    fields=fields,
    mesh=local,
    shard_size=8,
  )
  return {
    "lengths": lengths.each.tolist(),
    "cut": [lengths.cut_passages, lengths.cut_questions],
    "measured": [row for read in measured for row in read],
    "steps": rows,
    "planned": [batch.examples for batch in plan],
    "ids": ids,
    "encoded": [row for read in together for row in read],
    "own_shards": [row for read in encoded for row in read],
  }


def placements():
  """Whether rows lie where they belong, on meshes whose processes hold parts beside one another, apart, or the same."""
  devices = np.array(jax.devices())
  whole = np.arange(48, dtype=np.float32).reshape(16, 3)
  apart = Mesh(devices.reshape(2, 4).T.reshape(8, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  out = {}
  for name, mesh in {
    "beside": sharding.make_mesh(),
    "apart": apart,
    "same": sharding.make_mesh(MeshConfig(fsdp=1, tensor=8)),
  }.items():
    share = sharding.row_share(mesh)
    own = np.concatenate([whole[span.start : span.stop] for span in share.ranges(16)])
    local, everyones = sharding.place_rows(own, mesh), sharding.place_rows(whole, mesh, whole=True)
    held = {int(v) for shard in local.addressable_shards for v in np.asarray(shard.data)[:, 0]}
    same = [np.array_equal(sharding.gather(x), whole) for x in (local, everyones)]
    out[name] = {"parts": share.parts, "of": share.of, "same": same, "own": held == set(own[:, 0].tolist())}
  spread = sharding.place({"w": whole}, {"w": sharding.row_sharding(apart)})
  out["spread"] = np.array_equal(sharding.gather(spread)["w"], whole)
  return out


if __name__ == "__main__":
  with hosts.together():
    hosts.connect(sys.stderr.write)
    found = {"reads": reads(*sys.argv[1:]), "placements": placements()}
    sys.stdout.write("\n" + json.dumps(found) + "\n")
