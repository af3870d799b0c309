"""FedRAG's own RALT trainer and LSR collator on the same data and shape: run once by hand, its figures are in the docs.

It wants older libraries than this package, so it has an environment of its own, and reads the generator from files:

    python benchmarks/workload.py --squad dev-v1.1.json --out generator
    python -m venv fedrag && fedrag/bin/pip install torch==2.13.0
    fedrag/bin/pip install torch==2.13.0 fed-rag==0.0.27 "transformers<5" "sentence-transformers<5" \\
      accelerate peft datasets
    fedrag/bin/pip uninstall torchvision
    fedrag/bin/python benchmarks/fedrag.py --squad dev-v1.1.json --generator generator --encoder all-MiniLM-L6-v2
"""

import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import tempfile
import time
from importlib.metadata import version


def main() -> None:
  """Prints tokens per second of training, and (question, passage) pairs per second of scoring."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--squad", required=True, help="file of SQuAD 1.1")
  parser.add_argument("--generator", required=True, help="Hugging Face directory of the generator")
  parser.add_argument("--encoder", required=True, help="sentence-transformers model of the retriever")
  parser.add_argument("--questions", type=int, default=8, help="questions in all")
  parser.add_argument("--batch-size", type=int, default=4, help="questions a step")
  parser.add_argument("--passages", type=int, default=200, help="passages in the knowledge store")
  parser.add_argument("--k", type=int, default=5, help="passages per question")
  options = parser.parse_args()

  import torch
  from datasets import Dataset
  from fed_rag import RAGConfig, RAGSystem
  from fed_rag.data_collators.huggingface import DataCollatorForLSR, DataCollatorForRALT
  from fed_rag.data_structures import KnowledgeNode
  from fed_rag.generators.huggingface import HFPretrainedModelGenerator
  from fed_rag.knowledge_stores import InMemoryKnowledgeStore
  from fed_rag.retrievers.huggingface import HFSentenceTransformerRetriever
  from fed_rag.trainers.huggingface.ralt import HuggingFaceTrainerForRALT
  from transformers import TrainingArguments

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  articles = json.loads(pathlib.Path(options.squad).read_text(encoding="utf-8"))["data"]
  paragraphs = [p for article in articles for p in article["paragraphs"]]
  random.Random(0).shuffle(paragraphs)
  texts = [p["context"] for p in paragraphs[: options.passages]]
  asked = [p["qas"][0] for p in paragraphs[: options.questions]]

  retriever = HFSentenceTransformerRetriever(model_name=options.encoder)
  embeddings = retriever.encode_context(texts).tolist()
  nodes = [KnowledgeNode(embedding=e, node_type="text", text_content=t) for e, t in zip(embeddings, texts, strict=True)]
  system = RAGSystem(
    generator=HFPretrainedModelGenerator(model_name=options.generator),
    retriever=retriever,
    knowledge_store=InMemoryKnowledgeStore.from_nodes(nodes),
    rag_config=RAGConfig(top_k=options.k),
  )
  features = [{"query": q["question"], "response": q["answers"][0]["text"]} for q in asked]

  collate = DataCollatorForLSR(rag_system=system)
  batches = [features[i : i + options.batch_size] for i in range(0, len(features), options.batch_size)]
  collate(batches[0])
  taken = []
  for batch in batches:
    start = time.perf_counter()
    collate(batch)
    taken.append(len(batch) * options.k / (time.perf_counter() - start))

  padded = [DataCollatorForRALT(rag_system=system)(batch) for batch in batches]
  real = sum(int(b["attention_mask"].sum()) for b in padded)
  cells = sum(b["attention_mask"].numel() for b in padded)
  with tempfile.TemporaryDirectory() as directory:
    arguments = TrainingArguments(
      output_dir=directory,
      per_device_train_batch_size=options.batch_size,
      num_train_epochs=1,
      use_cpu=True,
      report_to=[],
      save_strategy="no",
      disable_tqdm=True,
    )
    trainer = HuggingFaceTrainerForRALT(
      rag_system=system, train_dataset=Dataset.from_list(features), training_arguments=arguments
    )
    trainer.train()
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
  packages = ("fed-rag", "torch", "transformers", "sentence-transformers")
  print(
    f"RALT {real / seconds:.0f} real tokens/s ({len(batches)} steps, batches {real / cells:.0%} full); "
    f"LSR collator {statistics.median(taken):.1f} pairs/s; {torch.get_num_threads()} threads, "
    f"Python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}"
  )


if __name__ == "__main__":
  main()
