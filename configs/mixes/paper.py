"""`radit prepare --mix paper --data DIR --corpus ... --workdir D`: what RA-DIT was tuned on (Lin et al., 2023).

Generator tuning (D_L): 20 instruction sets with at most 7,500 examples each; 10 % of the draws are plain text, 5 %
OASST-1, the rest in proportion to the capped sizes. Retriever tuning (D_R): 95 % pieces of the corpus that are to be
completed, 5 % questions and dialogues. Which sets D_R has beyond the first eight is not said; the last two are likely.

`radit download --list` says where the files come from. They lie in DIR in a folder for each set.
"""

import dataclasses

from radit_jax.config import PAPER_EVALUATION, MixConfig, SetConfig

oasst1 = SetConfig("oasst1", ("oasst*/*tree*.jsonl*",))
commonsense_qa = SetConfig("commonsense_qa", ("commonsense*qa/train_rand_split.jsonl*",))
math_qa = SetConfig("math_qa", ("math*qa/train.json",))
# The official file, or the three that its training half is also published as.
web_questions = SetConfig(
  "web_questions",
  (
    "web*questions/webquestions*train.json*",
    "web*questions/trainmodel.json",
    "web*questions/val.json",
    "web*questions/devtest.json",
  ),
)
wiki_qa = SetConfig("wiki_qa", ("wiki*qa/WikiQA-train.tsv", "wiki*qa/*/WikiQA-train.tsv"))
yahoo_answers_qa = SetConfig("yahoo_answers_qa", ("yahoo*/nfL6.json*",))
freebase_qa = SetConfig("freebase_qa", ("freebase*qa/FreebaseQA-train.json*",))
ms_marco = SetConfig("ms_marco", ("ms*marco/train_v*.json*",))
pubmed_qa = SetConfig("pubmed_qa", ("pubmed*qa/ori_pqal.json", "pubmed*qa/ori_pqaa.json"))
quarel = SetConfig("quarel", ("quarel/quarel-v1-train.jsonl", "quarel/*/quarel-v1-train.jsonl"))

mix = MixConfig(
  generator=(
    SetConfig("text", format="passages", weight=0.10),
    dataclasses.replace(oasst1, weight=0.05),
    commonsense_qa,
    math_qa,
    web_questions,
    wiki_qa,
    yahoo_answers_qa,
    SetConfig("coqa", ("coqa/coqa-train-v1.0.json",)),
    SetConfig("drop", ("drop/drop_dataset_train.json", "drop/*/drop_dataset_train.json")),
    SetConfig("narrativeqa", ("narrativeqa",), split="train"),
    SetConfig("newsqa", ("newsqa/combined-newsqa-data-v1.json",), split="train"),
    pubmed_qa,
    SetConfig("quail", ("quail/train.jsonl", "quail/*/json/train.jsonl")),
    quarel,
    SetConfig("squad_v2", ("squad*v2/train-v2.0.json",)),
    SetConfig("cnn_dailymail", ("cnn*dailymail",)),
    SetConfig("aqua_rat", ("aqua*rat/train.json",)),
    SetConfig("ecqa", ("ecqa",), split="train"),
    SetConfig("gsm8k", ("gsm8k/train.jsonl",)),
    SetConfig("competition_math", ("competition_math/MATH/train", "competition_math/train")),
    SetConfig("strategyqa", ("strategyqa/train.json",)),
  ),
  retriever=(
    oasst1,
    commonsense_qa,
    math_qa,
    web_questions,
    wiki_qa,
    yahoo_answers_qa,
    freebase_qa,
    ms_marco,
    pubmed_qa,
    quarel,
  ),
  evaluation=PAPER_EVALUATION,
  cap=7500,
  completions=900_000,
  completion_share=0.95,
  completion_tokens=50,
)
