"""Small files in the formats in which data sets are distributed, written by hand, and what they hold.

Each entry of ``ORIGINALS``: name of the format -> (path to read, {file: content}, the examples).
"""

import json

from radit_jax.data.readers.example import UNANSWERABLE, Example

STORY = "Mira Kelwick was born in Orlen. She sails the Vornara."


def jsonl(*records):
  return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def choice(name, question, choices, letter, category="choice", **fields):
  answers = (letter, choices["ABCDE".index(letter)])
  return Example(name, question, answers, category=category, choices=choices, **fields)


def talk(name, turns, answers, **fields):
  return Example(name, turns[-1], answers, category="dialogue", query="\n".join(turns), turns=turns, **fields)


def stem(name, question, labels, key):
  choices = [
    {"label": label, "text": word} for label, word in zip(labels, ("a barn", "the sea", "a drawer"), strict=True)
  ]
  record = {"id": name, "question": {"stem": question, "choices": choices}, "answerKey": key}
  return record


BOATS = ("a barn", "the sea", "a drawer")
ORIGINALS = {}

ORIGINALS["jsonl"] = (
  "q.jsonl",
  {
    "q.jsonl": jsonl(
      {"id": "a", "question": "Where?", "answers": ["Orlen"], "category": "fact", "query": "where is it"},
      {"id": "b", "turns": ["Hello.", "Hi.", "Who sails?"], "answers": ["Mira"]},
      {"id": "c", "question": "Which?", "answers": ["red"], "choices": ["blue", "red"], "context": "It is red."},
    )
  },
  [
    Example("a", "Where?", ("Orlen",), category="fact", query="where is it"),
    talk("b", ("Hello.", "Hi.", "Who sails?"), ("Mira",)),
    choice("c", "Which?", ("blue", "red"), "B", own_context="It is red."),
  ],
)
SQUAD = {
  "version": "v2.0",
  "data": [
    {
      "title": "Mira",
      "paragraphs": [
        {
          "context": STORY,
          "qas": [
            {"id": "1", "question": " Where? ", "answers": [{"text": "Orlen", "answer_start": 25}, {"text": "Orlen"}]},
            {"id": "2", "question": "Who?", "answers": [{"text": "Mira"}], "is_impossible": False},
          ],
        }
      ],
    }
  ],
}
ORIGINALS["squad"] = (
  "dev.json",
  {"dev.json": json.dumps(SQUAD)},
  [
    Example("1", "Where?", ("Orlen",), own_context=STORY, gold_passage_ids=("Mira#0",), group="Mira"),
    Example("2", "Who?", ("Mira",), own_context=STORY, gold_passage_ids=("Mira#0",), group="Mira"),
  ],
)
_no_answer = json.loads(json.dumps(SQUAD))
_no_answer["data"][0]["paragraphs"][0]["qas"][1] |= {"answers": [], "is_impossible": True, "plausible_answers": []}
ORIGINALS["squad_v2"] = (
  "dev.json",
  {"dev.json": json.dumps(_no_answer)},
  [
    Example("1", "Where?", ("Orlen",), category="reading", own_context=STORY, group="Mira"),
    Example("2", "Who?", (UNANSWERABLE,), category="reading", own_context=STORY, group="Mira"),
  ],
)
ORIGINALS["beir"] = (
  "sea",
  {
    "sea/corpus.jsonl": jsonl({"_id": "d1", "title": "", "text": STORY}),
    "sea/queries.jsonl": jsonl(
      {"_id": "q1", "text": "who sails", "metadata": {}},
      {"_id": "q2", "text": "not judged"},
      {"_id": "q3", "text": "x"},
    ),
    "sea/qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq3\td1\t0\n",
  },
  [Example("q1", "who sails", (), gold_passage_ids=("d1",))],
)
ORIGINALS["nq_open"] = (
  "nq.jsonl",
  {"nq.jsonl": jsonl({"question": "who sails the vornara", "answer": ["Mira Kelwick", "Kelwick"]})},
  [Example("nq.jsonl:1", "who sails the vornara", ("Mira Kelwick", "Kelwick"))],
)
ORIGINALS["trivia_qa"] = (
  "web.json",
  {
    "web.json": json.dumps(
      {
        "Data": [
          {
            "Answer": {"Aliases": ["The Vornara", "Vornara"], "NormalizedValue": "vornara", "Value": "Vornara"},
            "EntityPages": [],
            "Question": "Which boat does Mira sail?",
            "QuestionId": "tc_1",
          }
        ],
        "Domain": "Web",
      }
    )
  },
  [Example("tc_1", "Which boat does Mira sail?", ("Vornara", "The Vornara"))],
)
ORIGINALS["hotpot_qa"] = (
  "train.json",
  {
    "train.json": json.dumps(
      [
        {
          "_id": "h1",
          "question": "Is the Vornara's owner from Orlen?",
          "answer": "yes",
          "supporting_facts": [["Vornara", 0]],
          "context": [["Vornara", [STORY]]],
          "type": "bridge",
          "level": "hard",
        }
      ]
    )
  },
  [Example("h1", "Is the Vornara's owner from Orlen?", ("yes",), metadata={"type": "bridge", "level": "hard"})],
)
ORIGINALS["web_questions"] = (
  "train.json",
  {
    "train.json": json.dumps(
      [
        {
          "url": "u",
          "targetValue": '(list (description "The \\"Vornara\\"") (description Orlen) (description "Tobin (Ast)"))',
          "utterance": "what is named?",
        },
        {"qId": "w1", "qText": "where is mira from?", "answers": ["Orlen"]},
      ]
    )
  },
  [
    Example("train.json#[0]", "what is named?", ('The "Vornara"', "Orlen", "Tobin (Ast)")),
    Example("w1", "where is mira from?", ("Orlen",)),
  ],
)
ORIGINALS["wiki_qa"] = (
  "train.tsv",
  {
    "train.tsv": "QuestionID\tQuestion\tDocumentID\tDocumentTitle\tSentenceID\tSentence\tLabel\n"
    'Q1\twhere is mira from\tD1\tMira\tD1-0\tMira was born in "Orlen".\t1\n'
    "Q1\twhere is mira from\tD1\tMira\tD1-1\tShe sails.\t0\n"
    "Q2\twho is tobin\tD2\tTobin\tD2-0\tTobin has a boat.\t0\n"
  },
  [Example("Q1", "where is mira from", ('Mira was born in "Orlen".',), group="Mira")],
)
ORIGINALS["yahoo_answers_qa"] = (
  "nfL6.json",
  {
    "nfL6.json": json.dumps(
      [
        {
          "main_category": "Boats",
          "question": "How do I sail?",
          "nbestanswers": ["With wind.", "No."],
          "answer": "With wind<br />&amp; patience.",
          "id": "7",
        }
      ]
    )
  },
  [Example("7", "How do I sail?", ("With wind\n& patience.",), metadata={"main_category": "Boats"})],
)
ORIGINALS["freebase_qa"] = (
  "dev.json",
  {
    "dev.json": json.dumps(
      {
        "Dataset": "x",
        "Questions": [
          {
            "Question-ID": "f0",
            "RawQuestion": "Who sails the Vornara?",
            "ProcessedQuestion": "who sails the vornara",
            "Parses": [
              {"Parse-Id": "f0.P0", "Answers": [{"AnswersMid": "m.1", "AnswersName": ["mira", "mira kelwick"]}]},
              {"Parse-Id": "f0.P1", "Answers": [{"AnswersMid": "m.1", "AnswersName": ["mira"]}]},
            ],
          }
        ],
      }
    )
  },
  [Example("f0", "Who sails the Vornara?", ("mira", "mira kelwick"))],
)
ORIGINALS["ms_marco"] = (
  "train.json",
  {
    "train.json": json.dumps(
      {
        "answers": {"0": ["Orlen", "Orlen"], "5": ["No Answer Present."]},
        "passages": {
          "0": [{"is_selected": 1, "passage_text": STORY, "url": "u"}, {"is_selected": 0, "passage_text": "x"}],
          "5": [{"is_selected": 0, "passage_text": "y", "url": "u"}],
        },
        "query": {"0": "where is mira from", "5": "who is tobin"},
        "query_id": {"0": 19, "5": 20},
        "query_type": {"0": "LOCATION", "5": "PERSON"},
        "wellFormedAnswers": {"0": "[]", "5": "[]"},
      }
    )
  },
  [
    Example("19", "where is mira from", ("Orlen",), own_context=STORY),
    Example("20", "who is tobin", (UNANSWERABLE,)),
  ],
)


def kilt(name, question, *answers, **meta):
  page = {"wikipedia_id": "12", "title": "Mira", "start_paragraph_id": 1}
  output = [{"answer": answer, "provenance": [page]} for answer in answers] + [{"provenance": [page]}]
  return jsonl({"id": name, "input": question, "output": output, "meta": meta})


PAGE = {"wikipedia_ids": "12"}
LINK = "[START_ENT] Mira [END_ENT] sails from Orlen ."
for _name, _content, _example in (
  (
    "kilt",
    kilt("k", "who sails", "Mira", "Mira", "Kelwick"),
    Example("k", "who sails", ("Mira", "Kelwick"), metadata=PAGE),
  ),
  ("kilt_eli5", kilt("k", "why sail?", "It is fun."), Example("k", "why sail?", ("It is fun.",), metadata=PAGE)),
  ("kilt_fever", kilt("k", "Mira sails.", "SUPPORTS"), Example("k", "Mira sails.", ("yes",), "fact", metadata=PAGE)),
  ("kilt_aida", kilt("k", LINK, "Mira Kelwick"), Example("k", LINK, ("Mira Kelwick",), "entity", metadata=PAGE)),
  (
    "kilt_zsre",
    kilt("k", "Mira [SEP] home", "Orlen"),
    Example("k", "Mira [SEP] home", ("Orlen",), "slot", metadata=PAGE),
  ),
  (
    "kilt_trex",
    kilt("k", "Mira [SEP] boat", "Vornara"),
    Example("k", "Mira [SEP] boat", ("Vornara",), "slot", metadata=PAGE),
  ),
  (
    "kilt_wow",
    kilt("k", "I sail.\nWhat boat?\nMine.", "Nice!"),
    talk("k", ("I sail.", "What boat?", "Mine."), ("Nice!",), metadata=PAGE),
  ),
):
  ORIGINALS[_name] = ("dev-kilt.jsonl", {"dev-kilt.jsonl": _content}, [_example])

_story = {"source": "x", "id": "s1", "story": STORY, "questions": [], "answers": [], "additional_answers": {"0": []}}
for _i, (_q, _a) in enumerate((("Where was she born?", "Orlen"), ("When?", "unknown"), ("Which boat?", "Vornara"))):
  _story["questions"].append({"input_text": _q, "turn_id": _i + 1})
  _story["answers"].append({"span_start": 0, "span_end": 1, "span_text": "x", "input_text": _a, "turn_id": _i + 1})
  _story["additional_answers"]["0"].append({"input_text": "In " + _a if _i == 0 else _a, "turn_id": _i + 1})
_said = ("Where was she born?", "Orlen", "When?", UNANSWERABLE, "Which boat?")
ORIGINALS["coqa"] = (
  "coqa.json",
  {"coqa.json": json.dumps({"version": "1.0", "data": [_story]})},
  [
    talk("s1/0", _said[:1], ("Orlen", "In Orlen"), own_context=STORY, group="s1"),
    talk("s1/1", _said[:3], (UNANSWERABLE,), own_context=STORY, group="s1"),
    talk("s1/2", _said, ("Vornara",), own_context=STORY, group="s1"),
  ],
)
ORIGINALS["quac"] = (
  "train.json",
  {
    "train.json": json.dumps(
      {
        "data": [
          {
            "title": "Mira Kelwick",
            "section_title": "Life",
            "background": "A sailor.",
            "paragraphs": [
              {
                "id": "C_1",
                "context": STORY + " CANNOTANSWER",
                "qas": [
                  {
                    "id": "C_1_q#0",
                    "question": "Where was she born?",
                    "answers": [{"text": "Orlen", "answer_start": 25}, {"text": "in Orlen", "answer_start": 22}],
                    "orig_answer": {"text": "in Orlen", "answer_start": 22},
                    "followup": "y",
                    "yesno": "x",
                  },
                  {
                    "id": "C_1_q#1",
                    "question": "When?",
                    "answers": [{"text": "CANNOTANSWER", "answer_start": 55}],
                    "orig_answer": {"text": "CANNOTANSWER", "answer_start": 55},
                    "followup": "n",
                    "yesno": "x",
                  },
                ],
              }
            ],
          }
        ]
      }
    )
  },
  [
    talk("C_1_q#0", ("Where was she born?",), ("in Orlen", "Orlen"), own_context=STORY, group="Mira Kelwick"),
    talk(
      "C_1_q#1", ("Where was she born?", "in Orlen", "When?"), (UNANSWERABLE,), own_context=STORY, group="Mira Kelwick"
    ),
  ],
)
_NO_DATE = {"day": "", "month": "", "year": ""}
ORIGINALS["drop"] = (
  "drop.json",
  {
    "drop.json": json.dumps(
      {
        "sea_1": {
          "passage": STORY,
          "wiki_url": "u",
          "qa_pairs": [
            {
              "question": "How many boats?",
              "answer": {"number": "1", "date": _NO_DATE, "spans": []},
              "query_id": "a",
              "validated_answers": [{"number": "", "date": _NO_DATE, "spans": ["one"]}],
            },
            {
              "question": "When?",
              "answer": {"number": "", "date": {"day": "3", "month": "May", "year": "1931"}, "spans": []},
              "query_id": "b",
            },
            {"question": "Who?", "answer": {"number": "", "spans": ["Mira", "Tobin"]}, "query_id": "c"},
            {"question": "Why?", "answer": {"number": "", "date": _NO_DATE, "spans": []}, "query_id": "d"},
          ],
        }
      }
    )
  },
  [
    Example("a", "How many boats?", ("1", "one"), category="reading", own_context=STORY, group="sea_1"),
    Example("b", "When?", ("3 May 1931",), category="reading", own_context=STORY, group="sea_1"),
    Example("c", "Who?", ("Mira, Tobin",), category="reading", own_context=STORY, group="sea_1"),
  ],
)
ORIGINALS["narrativeqa"] = (
  "nqa",
  {
    "nqa/qaps.csv": "document_id,set,question,answer1,answer2,question_tokenized,answer1_tokenized,answer2_tokenized\n"
    'd1,train,"Where, then?",In Orlen,Orlen,x,x,x\nd1,test,Who?,Mira,Mira,x,x,x\n',
    "nqa/third_party/wikipedia/summaries.csv": f'document_id,set,summary,summary_tokenized\nd1,train,"{STORY}\n",x\n',
  },
  [
    Example("nqa/qaps.csv:2", "Where, then?", ("In Orlen", "Orlen"), category="reading", own_context=STORY, group="d1"),
    Example("nqa/qaps.csv:3", "Who?", ("Mira",), category="reading", own_context=STORY, group="d1"),
  ],
)
ORIGINALS["newsqa"] = (
  "combined.json",
  {
    "combined.json": json.dumps(
      {
        "data": [
          {
            "storyId": "./s.story",
            "text": STORY,
            "type": "train",
            "questions": [
              {"q": "Where?", "consensus": {"s": 25, "e": 30}, "answers": []},
              {"q": "When?", "consensus": {"noAnswer": True}, "answers": []},
              {"q": "Hm?", "consensus": {"badQuestion": True}, "answers": []},
            ],
          }
        ],
        "version": "1",
      }
    )
  },
  [
    Example(
      "combined.json#data[0].questions[0]",
      "Where?",
      ("Orlen",),
      category="reading",
      own_context=STORY,
      group="./s.story",
    ),
    Example(
      "combined.json#data[0].questions[1]",
      "When?",
      (UNANSWERABLE,),
      category="reading",
      own_context=STORY,
      group="./s.story",
    ),
  ],
)
ORIGINALS["pubmed_qa"] = (
  "ori.json",
  {
    "ori.json": json.dumps(
      {
        "123": {
          "QUESTION": "Does salt help?",
          "CONTEXTS": ["We asked.", "It did."],
          "LABELS": ["A", "B"],
          "MESHES": [],
          "YEAR": None,
          "final_decision": "maybe",
          "LONG_ANSWER": "It may.",
        }
      }
    )
  },
  [Example("123", "Does salt help?", ("maybe",), category="reading", own_context="We asked.\nIt did.")],
)
ORIGINALS["boolq"] = (
  "dev.jsonl",
  {"dev.jsonl": jsonl({"question": "does mira sail", "title": "Mira", "answer": True, "passage": STORY})},
  [
    Example(
      "dev.jsonl:1", "does mira sail", ("yes",), category="reading", own_context=STORY, metadata={"title": "Mira"}
    )
  ],
)
ORIGINALS["cnn_dailymail"] = (
  "stories",
  {
    "stories/a1.story": "(CNN) Mira was born.\n\nShe sails.\n\n@highlight\n\nMira sails\n\n@highlight\n\nShe is born\n",
    "stories/._a1.story": "hidden",
    "stories/b2.story": "\n\n@highlight\n\nNothing was written\n",
  },
  [
    Example(
      "a1",
      "Summarize this article:",
      ("Mira sails\nShe is born",),
      category="summary",
      own_context="(CNN) Mira was born.\nShe sails.",
    )
  ],
)

for _name in ("commonsense_qa", "arc", "openbookqa"):
  ORIGINALS[_name] = (
    "train.jsonl",
    {
      "train.jsonl": jsonl(
        stem("c1", "Where does a boat lie?", "ABC", "B") | {"fact1": "x"}, stem("c2", "And a spoon?", "123", "3")
      )
    },
    [choice("c1", "Where does a boat lie?", BOATS, "B"), choice("c2", "And a spoon?", BOATS, "C")],
  )
ORIGINALS["math_qa"] = (
  "train.json",
  {
    "train.json": json.dumps(
      [
        {"Problem": "what is 2 + 2 ?", "Rationale": "x", "options": "a ) 3 , b ) rs . 4 , c ) 1,000", "correct": "b"},
        {"Problem": "and 3 + 3 ?", "Rationale": "x", "options": "['a ) 6', 'b ) 7']", "correct": "a"},
      ]
    )
  },
  [
    choice("train.json#[0]", "what is 2 + 2 ?", ("3", "rs . 4", "1,000"), "B"),
    choice("train.json#[1]", "and 3 + 3 ?", ("6", "7"), "A"),
  ],
)
ORIGINALS["quail"] = (
  "train.jsonl",
  {
    "train.jsonl": jsonl(
      {
        "id": "f1_0",
        "context_id": "f1",
        "question_id": "0",
        "domain": "fiction",
        "metadata": {"author": "x"},
        "context": STORY,
        "question": "Where?",
        "question_type": "Factual",
        "answers": ["Orlen", "not enough information"],
        "correct_answer_id": "0",
      }
    )
  },
  [
    choice(
      "f1_0", "Where?", ("Orlen", "not enough information"), "A", category="reading", own_context=STORY, group="f1"
    )
  ],
)
ORIGINALS["quarel"] = (
  "train.jsonl",
  {
    "train.jsonl": jsonl(
      {"id": "QuaRel_1", "question": "Which is smoother? (A) ice (B) sand", "answer_index": 1, "logical_forms": []}
    )
  },
  [choice("QuaRel_1", "Which is smoother?", ("ice", "sand"), "B")],
)
ORIGINALS["mmlu"] = (
  "test",
  {
    "test/boats_test.csv": '"Which, of these,\nfloats?",a stone,"a ""boat""",a nail,None,B\n',
    "test/knots_test.csv": "Which knot?,1,2,3,4,D\n",
  },
  [
    choice(
      "test/boats_test.csv:1",
      "Which, of these,\nfloats?",
      ("a stone", 'a "boat"', "a nail", "None"),
      "B",
      metadata={"subject": "boats"},
    ),
    choice("test/knots_test.csv:1", "Which knot?", ("1", "2", "3", "4"), "D", metadata={"subject": "knots"}),
  ],
)
ORIGINALS["piqa"] = (
  "train.jsonl",
  {"train.jsonl": jsonl({"goal": "To sail,", "sol1": "hoist it.", "sol2": "drop it."}), "train-labels.lst": "0\n"},
  [choice("train.jsonl:1", "To sail,", ("hoist it.", "drop it."), "A")],
)
ORIGINALS["siqa"] = (
  "train.jsonl",
  {
    "train.jsonl": jsonl(
      {"context": "Mira left.", "question": "Why?", "answerA": "to sail", "answerB": "to eat", "answerC": "to hide"}
    ),
    "train-labels.lst": "3\n",
  },
  [choice("train.jsonl:1", "Mira left. Why?", ("to sail", "to eat", "to hide"), "C")],
)
ORIGINALS["hellaswag"] = (
  "val.jsonl",
  {
    "val.jsonl": jsonl(
      {
        "ind": 4,
        "activity_label": "Sailing",
        "ctx_a": "Mira hoists.",
        "ctx_b": "she",
        "ctx": "Mira hoists. she",
        "split": "val",
        "label": 1,
        "endings": ["sinks.", "sails."],
        "source_id": "x",
      }
    )
  },
  [choice("val.jsonl:1", "Mira hoists. she", ("sinks.", "sails."), "B", metadata={"activity": "Sailing"})],
)
ORIGINALS["winogrande"] = (
  "train_xs.jsonl",
  {
    "train_xs.jsonl": jsonl(
      {"qID": "W-1", "sentence": "Mira beat Tobin as _ was fast.", "option1": "Mira", "option2": "Tobin", "answer": "1"}
    )
  },
  [choice("W-1", "Mira beat Tobin as _ was fast.", ("Mira", "Tobin"), "A")],
)

ORIGINALS["aqua_rat"] = (
  "dev.json",
  {
    "dev.json": jsonl(
      {"question": "2 + 2?", "options": ["A)3", "B)4"], "rationale": "2 and 2\nmake 4.", "correct": "B"},
    )
  },
  [
    Example(
      "dev.json:1", "2 + 2?", ("2 and 2\nmake 4.\nThe answer is B.", "B", "4"), category="reasoning", choices=("3", "4")
    )
  ],
)
ORIGINALS["ecqa"] = (
  "cqa_data_train.csv",
  {
    "cqa_data_train.csv": "q_no,q_concept,q_text,q_op1,q_op2,q_op3,q_op4,q_op5,q_ans,taskA_pos,taskA_neg,taskB\n"
    'e1,boat,Where does a boat lie?,barn,sea,drawer,sky,oven,sea,"Boats\nfloat",x,"Boats float, so they lie at sea."\n'
  },
  [
    Example(
      "e1",
      "Where does a boat lie?",
      ("Boats float, so they lie at sea.\nThe answer is B.", "B", "sea"),
      category="reasoning",
      choices=("barn", "sea", "drawer", "sky", "oven"),
    )
  ],
)
ORIGINALS["gsm8k"] = (
  "train.jsonl",
  {
    "train.jsonl": jsonl(
      {"question": "2 boats, 3 sails each?", "answer": "There are 2*3 = <<2*3=6>>6 sails.\n#### 6"},
    )
  },
  [
    Example(
      "train.jsonl:1",
      "2 boats, 3 sails each?",
      ("There are 2*3 = 6 sails.\nThe answer is 6.", "6"),
      category="reasoning",
    )
  ],
)
ORIGINALS["competition_math"] = (
  "MATH",
  {
    "MATH/train/algebra/1.json": json.dumps(
      {
        "problem": "What is $1/2$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": "It is $\\boxed{\\frac{1}{2}}$.",
      }
    )
  },
  [
    Example(
      "MATH/train/algebra/1.json",
      "What is $1/2$?",
      ("It is $\\boxed{\\frac{1}{2}}$.\nThe answer is \\frac{1}{2}.", "\\frac{1}{2}"),
      category="reasoning",
      metadata={"type": "Algebra", "level": "Level 1"},
    )
  ],
)
ORIGINALS["strategyqa"] = (
  "train.json",
  {
    "train.json": json.dumps(
      [
        {
          "qid": "s1",
          "term": "Vornara",
          "description": "boat",
          "question": "Can the Vornara fly?",
          "answer": False,
          "facts": ["The Vornara is a boat.", "Boats do not fly."],
          "decomposition": [],
          "evidence": [],
        }
      ]
    )
  },
  [
    Example(
      "s1",
      "Can the Vornara fly?",
      ("The Vornara is a boat. Boats do not fly.\nThe answer is no.", "no"),
      category="reasoning",
    )
  ],
)


def message(role, text, *replies, rank=None, deleted=False):
  return {"role": role, "text": text, "lang": "en", "rank": rank, "deleted": deleted, "replies": list(replies)}


ORIGINALS["oasst1"] = (
  "trees.jsonl",
  {
    "trees.jsonl": jsonl(
      {
        "message_tree_id": "t1",
        "tree_state": "ready_for_export",
        "prompt": message(
          "prompter",
          "How to sail?",
          message("assistant", "No.", rank=1),
          message(
            "assistant",
            "With wind.",
            message("prompter", "And without?", message("assistant", "Row.", message("prompter", "Thanks"), rank=0)),
            rank=0,
          ),
        ),
      },
      {"message_tree_id": "t2", "prompt": message("prompter", "Hm?", message("assistant", "x", deleted=True))},
    )
  },
  [talk("t1", ("How to sail?", "With wind.", "And without?"), ("Row.",), metadata={"lang": "en"})],
)


def write(folder, name):
  """Writes a format's files; the path to read."""
  path, files, _ = ORIGINALS[name]
  for file, content in files.items():
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, encoding="utf-8", newline="")
  return folder / path
