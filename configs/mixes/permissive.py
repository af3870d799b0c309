"""`radit prepare --mix permissive --data DIR --corpus ... --workdir D`: the paper's sets under MIT, Apache 2.0 or CC BY.

Nothing here is for research only, and nothing asks that what is made of it be shared alike. Plain text and completions
are those of the corpus, and under its licence. With share-alike sets too (SQuAD 2, DROP, NarrativeQA, ECQA):
`--mix paper --licence commercial`.
"""

import dataclasses

from radit_jax.config import MixConfig, SetConfig

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
    pubmed_qa,
    quarel,
    SetConfig("aqua_rat", ("aqua*rat/train.json",)),
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
)
