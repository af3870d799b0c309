"""`radit prepare --mix permissive --data DIR --corpus ... --workdir D`: the paper's sets that allow commercial use.

`radit download --mix permissive` fetches them. Those of Wikipedia texts (SQuAD 2, DROP, NarrativeQA's summaries) are
CC BY-SA, ECQA is CDLA-Sharing, the others are MIT, Apache 2.0 or CC BY: the data card lists each. Plain text and
completions are the corpus's, and under its licence.
"""

import dataclasses

from radit_jax.config import PAPER_EVALUATION, MixConfig, SetConfig

oasst1 = SetConfig("oasst1", ("oasst*/*tree*.jsonl*",))
commonsense_qa = SetConfig("commonsense_qa", ("commonsense*qa/train_rand_split.jsonl*",))
math_qa = SetConfig("math_qa", ("math*qa/train.json",))
web_questions = SetConfig(
  "web_questions",
  (
    "web*questions/webquestions*train.json*",
    "web*questions/trainmodel.json",
    "web*questions/val.json",
    "web*questions/devtest.json",
  ),
)
pubmed_qa = SetConfig("pubmed_qa", ("pubmed*qa/ori_pqal.json", "pubmed*qa/ori_pqaa.json"))
quarel = SetConfig("quarel", ("quarel/quarel-v1-train.jsonl", "quarel/*/quarel-v1-train.jsonl"))

mix = MixConfig(
  generator=(
    SetConfig("text", format="passages", weight=0.10),
    dataclasses.replace(oasst1, weight=0.05),
    commonsense_qa,
    math_qa,
    web_questions,
    SetConfig("drop", ("drop/drop_dataset_train.json", "drop/*/drop_dataset_train.json")),
    SetConfig("narrativeqa", ("narrativeqa",), split="train"),
    pubmed_qa,
    quarel,
    SetConfig("squad_v2", ("squad*v2/train-v2.0.json",)),
    SetConfig("aqua_rat", ("aqua*rat/train.json",)),
    SetConfig("ecqa", ("ecqa",), split="train"),
    SetConfig("gsm8k", ("gsm8k/train.jsonl",)),
    SetConfig("strategyqa", ("strategyqa/train.json",)),
  ),
  retriever=(
    oasst1,
    commonsense_qa,
    math_qa,
    web_questions,
    SetConfig("freebase_qa", ("freebase*qa/FreebaseQA-train.json*",)),
    pubmed_qa,
    quarel,
  ),
  evaluation=PAPER_EVALUATION,
)
