"""Conversations as tokens: those of transformers, the answers graded with their ends, and asked as they were learned."""

import json
import re
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from llm import bases, generation
from llm.__main__ import main
from llm.bases import transformers_tokenizers
from llm.bases.transformers_tokenizers import read_tokenizer
from llm.errors import SettingError, TextError
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig
from llm.text import chat
from llm.text.chat import conversation, end_of_turn, opening, spelled, template_notes, with_template
from llm.text.examples import targets
from llm.tokenizer import GPT2

transformers = pytest.importorskip("transformers")

SYSTEM, HI = dict(role="system", content="Be brief."), dict(role="user", content="Hi there, you")
HELLO, WHERE = dict(role="assistant", content="Hello!"), dict(role="user", content="Where are  you?\n")
HERE = dict(role="assistant", content="Hello, I am\n\nhere.")
TALK = [HI, HELLO, WHERE, HERE]
MARKS = ["<s>", "</s>", "<|user|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "<|model|>"]

# shaped as templates in the wild are
BRACKETS = (  # Llama 2: no role header, nothing that asks, a blank before the end token
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HEADS = (  # Llama 3: an end of turn that is not the tokenizer's
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
LAST = (  # Phi: an end token behind the last end of turn
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|eot|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
UNASKED = chat.CHATML.partition("{% if add")[0]  # a header that nobody asks with
WORDS = (  # Vicuna: words for markers
    "{% for m in messages %}{{ m.role | upper + ': ' + m.content }}{{ eos_token if m.role == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHORT_TAG = TAGGED.replace(
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
    "{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",
)
EARLY_TAG = TAGGED.replace(" + '\n' }}{% if", " }}{% if")
EARLY_TAG = EARLY_TAG.replace("{% generation %}{{ m", "{% generation %}{{ '\n' + m").replace(
    "{% else %}{{ m", "{% else %}{{ '\n' + m"
)
LONG_TAG = TAGGED.replace("<|im_end|>' }}{% endgeneration %}{{ '\n' }}", "<|im_end|>\n' }}{% endgeneration %}")
THINKING = (  # Qwen 3: what was thought is dropped once a user has written again, and the last answer has some, if none
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and "
    "loop.index0 > ns.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENED = (  # DeepSeek R1: what asks for an answer opens a thought that no answer of a conversation has
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + HEADS
TOOLS = (
    "{% if tools %}{{ '<|head|>tools<|/head|>' + tools | tojson + '<|eot|>' }}{% endif %}{% for m in messages %}"
    "{{ '<|head|>' + m.role + '<|/head|>\n\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
    "{{ c.function | tojson }}{% endfor %}{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
TOOL = dict(type="function", function=dict(name="now", description="the time", parameters={}))
CALL = dict(role="assistant", tool_calls=[dict(type="function", function=dict(name="now", arguments={"zone": "UTC"}))])
# template: its answers in TALK
STEADY = {
    chat.CHATML: ["Hello!<|im_end|>", "Hello, I am\n\nhere.<|im_end|>"],
    BRACKETS: [" Hello! </s>", " Hello, I am\n\nhere. </s>"],
    HEADS: ["Hello!<|eot|>", "Hello, I am\n\nhere.<|eot|>"],
    LAST: ["Hello!<|eot|>", "Hello, I am\n\nhere.<|eot|>"],
    UNASKED: ["Hello!<|im_end|>", "Hello, I am\n\nhere.<|im_end|>"],
    WORDS: [" Hello!</s>", " Hello, I am\n\nhere.</s>"],
    TAGGED: ["Hello!<|im_end|>", "Hello, I am\n\nhere.<|im_end|>"],
    SHORT_TAG: ["Hello!<|im_end|>", "Hello, I am\n\nhere.<|im_end|>"],
    LONG_TAG: ["Hello!<|im_end|>", "Hello, I am\n\nhere.<|im_end|>"],
    EARLY_TAG: ["Hello!<|im_end|>", "Hello, I am\n\nhere.<|im_end|>"],
    chat.PLAIN: [" Hello!</s>", " Hello, I am\n\nhere.</s>"],
}
MOVING = {
    THINKING: ["<think>\n\n</think>\n\nHello!<|im_end|>", "<think>\n\n</think>\n\nHello, I am\n\nhere.<|im_end|>"],
    OPENED: ["Hello!</s>", "Hello, I am\n\nhere.</s>"],
}
NAMES = [
    "chatml",
    "brackets",
    "heads",
    "last",
    "unasked",
    "words",
    "tagged",
    "short_tag",
    "long_tag",
    "early_tag",
    "plain",
]
steady = pytest.mark.parametrize("template", STEADY, ids=NAMES)
every = pytest.mark.parametrize("template", [*STEADY, *MOVING], ids=[*NAMES, "thinking", "opened"])


def trained(kind="bytes", special=MARKS, begins=False):
    """A small byte-pair tokenizer: "bytes" as GPT-2's, "metaspace" as Llama's, which puts a blank before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "</s>"))
    made.pre_tokenizer = byte if kind == "bytes" else pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.ByteLevel() if kind == "bytes" else decoders.Metaspace(prepend_scheme="first")
    alphabet = (
        byte.alphabet() if kind == "bytes" else sorted(set(str(TALK) + "\n<|>/[]INSTthinkASSISTANT:USERassistant"))
    )
    texts = [m["content"] for m in [SYSTEM, *TALK]] * 9 + ["assistant\n", " Hello", "ASSISTANT: Hello", "User: "] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    if begins:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens(dict(additional_special_tokens=special[2:]))
    return tokenizer


@pytest.fixture(scope="module")
def lay(tmp_path_factory):
    """Lays a tokenizer with a template into a folder, once, and reads it from there."""
    made = {}

    def read(template=None, *args):
        if (template, args) not in made:
            source = trained(*args)
            source.chat_template = template
            source.save_pretrained(folder := tmp_path_factory.mktemp("tokenizers"))
            made[template, args] = read_tokenizer(folder)
        return made[template, args]

    return read


def without_places(tokenizer):
    """As tokenizers that are not of the fast kind are: they do not say where in a text a token is."""
    return replace(tokenizer, mark=lambda text: (tokenizer.mark(text)[0], None))


def written(tokenizer, row):
    return [tokenizer.decode(part) for part in row]


def joined(row):
    return [token for part in row for token in part]


# what a row is


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@steady
def test_a_conversation_is_transformers_own_tokens_and_its_answers_are_graded_with_their_ends(lay, template, kind):
    tokenizer = lay(template, kind)
    [row] = conversation(TALK, tokenizer)
    assert joined(row) == tokenizer.source.apply_chat_template(TALK, tokenize=True)["input_ids"]
    graded = [text.strip() if kind == "metaspace" else text for text in written(tokenizer, row[1::2])]
    assert graded == [text.strip() if kind == "metaspace" else text for text in STEADY[template]]


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@every
def test_an_answer_is_learned_behind_the_tokens_that_ask_for_it(lay, template, kind):
    tokenizer = lay(template, kind)
    for messages in (TALK[:2], TALK):
        *_, row = conversation(messages, tokenizer, "last")
        assert row[0] == opening(messages[:-1], tokenizer) and row[1][-1] == end_of_turn(tokenizer)


@pytest.mark.parametrize("template", MOVING, ids=["thinking", "opened"])
def test_a_template_that_writes_earlier_turns_differently_gives_a_row_for_each_answer(lay, template):
    tokenizer = lay(template)
    rows = conversation(TALK, tokenizer)
    assert [written(tokenizer, row[1:]) for row in rows] == [[answer] for answer in MOVING[template]]
    asked = [tokenizer.source.apply_chat_template(TALK[:i], add_generation_prompt=True)["input_ids"] for i in (1, 3)]
    assert [row[0] for row in rows] == asked


def test_a_thought_is_graded_with_its_answer_and_not_read_in_later_turns(lay):
    tokenizer = lay(THINKING)
    first, last = conversation([HI, HELLO | dict(reasoning_content="Greet."), WHERE, HERE], tokenizer)
    assert tokenizer.decode(first[1]) == "<think>\nGreet.\n</think>\n\nHello!<|im_end|>"
    assert "Greet" not in tokenizer.decode(joined(last))


@every
def test_a_tokenizer_that_does_not_say_where_its_tokens_are_gives_the_same_rows(lay, template):
    for talk in (TALK, TALK[:2], [HI, HELLO | dict(content="")]):
        tokenizer = lay(template)
        assert conversation(talk, without_places(tokenizer)) == conversation(talk, tokenizer)


def test_a_slow_tokenizer_gives_the_rows_of_transformers(tmp_path, monkeypatch):
    source = transformers.ByT5Tokenizer(extra_ids=0)
    source.add_special_tokens(dict(additional_special_tokens=["<|im_start|>", "<|im_end|>"]))
    source.chat_template = chat.CHATML
    source.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers_tokenizers, "has_vocabulary", lambda folder: True)  # bytes need none
    tokenizer = read_tokenizer(tmp_path)
    assert not tokenizer.source.is_fast
    talk = [*TALK, dict(role="user", content="naïve?"), dict(role="assistant", content="é")]
    [row] = conversation(talk, tokenizer)
    assert written(tokenizer, row[1::2]) == [*STEADY[chat.CHATML], "é<|im_end|>"]
    assert joined(row) == source.apply_chat_template(talk)["input_ids"]


def test_what_counts_are_all_answers_the_last_those_from_a_message_on_or_everything(lay):
    for template in (chat.CHATML, TAGGED):
        tokenizer = lay(template)
        one, two = STEADY[template]
        for options, wanted in ((dict(), [one, two]), (dict(train_on="last"), [two]), (dict(answers_from=3), [two])):
            [row] = conversation([SYSTEM, *TALK, WHERE], tokenizer, **options)
            assert written(tokenizer, row[1::2]) == wanted
        assert conversation(TALK, tokenizer, answers_from=5) == conversation([HI], tokenizer) == []
        [row] = conversation(TALK, tokenizer, "all")
        ids = tokenizer.source.apply_chat_template(TALK)["input_ids"]
        assert targets(row) == [IGNORE, *ids[1:]] and joined(row) == ids
    with pytest.raises(SettingError, match="train_on='some' is unknown: choose one of answers, last, all"):
        conversation(TALK, tokenizer, "some")


def test_an_empty_answer_is_its_end(lay):
    for template, content, end in (
        (chat.CHATML, "", "<|im_end|>"),
        (chat.CHATML, None, "<|im_end|>"),
        (HEADS, "", "<|eot|>"),
        (TAGGED, "", "<|im_end|>"),
        ("plain", "", "</s>"),
        ("plain", None, "</s>"),
    ):
        [row] = conversation([HI, HELLO | dict(content=content)], with_template(lay(), template))
        assert written(lay(), row[1::2]) == [end]


def test_a_token_that_lies_across_the_border_counts_with_its_answer(lay):
    tokenizer = lay(WORDS.replace("'ASSISTANT:'", "'ASSISTANT: '"))  # what asks ends in the blank of the first word
    for own in (tokenizer, without_places(tokenizer)):
        [row] = conversation(TALK[:2], own)
        assert written(own, row) == ["USER: Hi there, you ASSISTANT:", " Hello!</s>"]


def test_a_key_without_a_value_is_no_key(lay):
    tokenizer = lay(
        chat.CHATML.replace(
            "message['role'] +", "message['role'] + (message.name if message.name is defined else '') +"
        )
    )
    assert conversation([HI, HELLO | dict(name=None)], tokenizer) == conversation([HI, HELLO], tokenizer)


@pytest.mark.skipif(not find_spec("trl"), reason="TRL's templates are not here")
def test_templates_of_well_known_models_give_the_tokens_of_transformers_and_learn_what_they_are_asked(lay):
    texts = [path.read_text() for path in Path(find_spec("trl").origin).parent.glob("chat_templates/*.jinja")]
    markers = {mark for text in texts for mark in re.findall(r"<[|｜]?[\w▁ ]+[|｜]?>", text)}
    tokenizer, found, pictures = lay(None, "bytes", (*MARKS, *sorted(markers.difference(MARKS)))), 0, 0
    for text in texts:
        own = with_template(tokenizer, text)
        try:
            rows = conversation(TALK, own)
        except TextError:  # what is said lies beside a picture there
            pictures += "'image'" in text
            continue
        ids = tokenizer.source.apply_chat_template(TALK, chat_template=text)["input_ids"]
        assert [joined(row) for row in rows] == [ids] or len(rows) == 2
        row = conversation(TALK, own, "last")[0]
        asked = tokenizer.source.apply_chat_template(TALK[:3], chat_template=text, add_generation_prompt=True)
        assert row[0] == opening(TALK[:3], own) == asked["input_ids"]
        assert tokenizer.decode(row[1]).endswith(HERE["content"] + chat.end_text(own))
        found += 1
    assert found + pictures == len(texts) > 0


# templates that mark their answers


def test_without_a_mark_transformers_grades_nothing_and_we_grade_the_answers(lay):
    source = lay(chat.CHATML).source
    out = source.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert not any(out["assistant_masks"])
    assert len(conversation(TALK, lay(chat.CHATML))[0]) == 5


def test_where_a_template_marks_its_answers_whole_the_graded_tokens_are_those_of_transformers(lay):
    tokenizer = lay(TAGGED)
    out = tokenizer.source.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    [row] = conversation(TALK, tokenizer)
    assert [int(target != IGNORE) for target in targets(row)] == out["assistant_masks"] and 1 in out["assistant_masks"]


def test_what_a_template_leaves_unmarked_in_an_answer_is_only_read(lay):
    thought = TAGGED.replace("{% generation %}", "{{ '<think>' + (m.thought or '') + '</think>' }}{% generation %}")
    [row] = conversation([HI, HELLO | dict(thought="Greet.")], lay(thought))
    assert written(lay(thought), row[1:]) == ["Hello!<|im_end|>", "\n"]
    assert lay(thought).decode(row[0]).endswith("<|im_start|>assistant\n<think>Greet.</think>")


def test_a_mark_that_begins_at_the_first_token_grades_that_answer_and_not_the_rest(lay):
    bare = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    tokenizer = lay(bare)
    [row] = conversation([HELLO, HI], tokenizer)
    assert row[0] and tokenizer.decode(joined(row[:2])) == "Hello!<|im_end|>"  # nothing predicts a first token
    assert tokenizer.decode(row[2]) == "Hi there, you<|im_end|>" and len(row) == 3


def test_a_mark_on_white_space_that_a_tokenizer_strips_grades_its_answer_and_not_the_rest(lay):
    spaced = TAGGED.replace(
        "{% generation %}{{ m.content + '<|im_end|>' }}", "{% generation %}{{ '  ' + m.content + '<|im_end|>  ' }}"
    )
    source = transformers.PreTrainedTokenizerFast(tokenizer_object=stripping(), eos_token="</s>")
    source.add_special_tokens(dict(additional_special_tokens=["<|im_start|>", "<|im_end|>"]))

    def mark(text):
        out = source(text, add_special_tokens=False, return_offsets_mapping=True)
        return out["input_ids"], out["offset_mapping"]

    tokenizer = replace(lay(), mark=mark, template=spaced, special=("<|im_start|>", "<|im_end|>"))
    [row] = conversation(TALK, tokenizer)
    words = [source.convert_ids_to_tokens(part) for part in row[1::2]]
    assert words == [["Hello", "!", "<|im_end|>"], ["Hello", ",", "I", "am", "here", ".", "<|im_end|>"]]


def stripping():
    """Words and punctuation; white space is no token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [m["content"] + " user assistant" for m in TALK]
    made.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False))
    return made


# the end of a turn, asking, and what a template refuses


def test_an_answer_ends_where_the_template_says_also_when_that_is_not_the_tokenizers_end(lay):
    ends = {chat.CHATML: "<|im_end|>", HEADS: "<|eot|>", LAST: "<|eot|>", BRACKETS: "</s>", OPENED: "</s>"}
    for template, end in ends.items():
        tokenizer = lay(template)
        assert end_of_turn(tokenizer) == tokenizer.source.convert_tokens_to_ids(end) and chat.end_text(tokenizer) == end
    assert end_of_turn(GPT2) == GPT2.end
    endless = with_template(lay(), "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}")
    assert chat.end_text(endless) == "" and end_of_turn(endless) == endless.end


def test_asking_is_what_transformers_asks_with(lay):
    for template in (chat.CHATML, HEADS, LAST, WORDS, TAGGED, THINKING, OPENED):
        tokenizer = lay(template)
        ids = tokenizer.source.apply_chat_template(TALK[:3], add_generation_prompt=True)["input_ids"]
        assert opening(TALK[:3], tokenizer) == ids
    assert lay(UNASKED).decode(opening([HI], lay(UNASKED))).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_what_a_template_raises_is_one_sentence(lay):
    for ask in (conversation, opening):
        with pytest.raises(TextError) as caught:
            ask([SYSTEM, *TALK], lay(STRICT))
        assert str(caught.value) == (
            "the chat template cannot write this conversation (System role not supported): change its messages, or give "
            "another --template"
        )
    for broken in (
        "{% for m in messages %}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ):
        with pytest.raises(TextError, match="the chat template cannot write this conversation"):
            conversation(TALK, with_template(lay(), broken))


def test_tools_and_calls_reach_the_template(lay):
    tokenizer, talk = lay(TOOLS), [HI, CALL, dict(role="tool", content="12:00"), HELLO]
    [row] = conversation(talk, tokenizer, tools=[TOOL])
    assert joined(row) == tokenizer.source.apply_chat_template(talk, tools=[TOOL])["input_ids"]
    assert json.loads(tokenizer.decode(row[1]).removesuffix("<|eot|>")) == CALL["tool_calls"][0]["function"]
    assert tokenizer.decode(row[3]) == "Hello!<|eot|>" and "the time" in tokenizer.decode(row[0])
    asked = tokenizer.source.apply_chat_template(talk[:3], tools=[TOOL], add_generation_prompt=True)["input_ids"]
    assert opening(talk[:3], tokenizer, [TOOL]) == asked


def test_a_call_that_the_template_would_drop_is_refused_and_tools_that_it_drops_are_said(lay):
    with pytest.raises(TextError, match="does not write tool_calls: write the call as the content"):
        conversation([HI, CALL], lay(chat.CHATML))
    assert conversation([HI, CALL | dict(content="call now()")], lay(chat.CHATML))
    said = "the template does not write tools: put them into the system message"
    assert said in template_notes(lay(chat.CHATML), tools=True) and said not in template_notes(lay(TOOLS), tools=True)


@every
def test_a_message_that_spells_special_tokens_is_read_as_transformers_reads_it(lay, template):
    tokenizer = lay(template)
    talk = [dict(role="user", content="</s><|im_end|>"), dict(role="assistant", content="a<|im_end|>\nb</s>\n")]
    row = joined(conversation(talk, tokenizer)[0])
    if template in STEADY:
        assert row == tokenizer.source.apply_chat_template(talk)["input_ids"]
    assert row.count(tokenizer.source.convert_tokens_to_ids("<|im_end|>")) >= 2
    assert spelled(talk, tokenizer) == Counter({"<|im_end|>": 2, "</s>": 2}) and not spelled(TALK, tokenizer)


# without a template, or with another one


def test_without_a_template_a_conversation_is_lines_with_the_end_token_behind_each_answer(lay):
    for tokenizer in (GPT2, lay(None), lay(None, "bytes", (*MARKS,), True)):
        end = tokenizer.decode([tokenizer.end])
        [row] = conversation([SYSTEM, *TALK], tokenizer)
        assert row[0][: len(tokenizer.begin)] == [*tokenizer.begin]
        assert tokenizer.decode(row[0][len(tokenizer.begin) :]) == "System: Be brief.\nUser: Hi there, you\nAssistant:"
        assert written(tokenizer, row[1::2]) == [f" Hello!{end}", f" Hello, I am\n\nhere.{end}"]
        assert row[0] == opening([SYSTEM, HI], tokenizer) and end_of_turn(tokenizer) == tokenizer.end


def test_the_plain_template_as_jinja_writes_the_same_for_other_programs(lay):
    for begins in (False, True):
        plain = lay(None, "bytes", (*MARKS,), begins)
        outside = with_template(plain, chat.jinja(plain))
        for talk in ([SYSTEM, *TALK], [HI, HELLO | dict(content="")]):
            assert conversation(talk, plain) == conversation(talk, outside)
            assert opening(talk[:-1], plain) == opening(talk[:-1], outside)
    assert chat.jinja(lay(HEADS)) == HEADS


def test_another_template_replaces_a_tokenizers_own_and_is_saved_with_it(lay, tmp_path):
    own = lay(HEADS)
    (tmp_path / "mine.jinja").write_text(TAGGED)
    assert with_template(own, "chatml").template == chat.CHATML
    assert with_template(own, "plain").template == "plain"
    assert with_template(own, TAGGED) == with_template(own, str(tmp_path / "mine.jinja"))
    with_template(own, TAGGED).save(tmp_path / "saved")
    assert read_tokenizer(tmp_path / "saved").template == TAGGED and own.source.chat_template == HEADS
    with_template(own, "plain").save(tmp_path / "plain")
    again = read_tokenizer(tmp_path / "plain")
    assert conversation(TALK, again) == conversation(TALK, with_template(own, "plain"))


def test_a_template_that_is_none_or_has_no_place_for_text_is_one_sentence(lay, tmp_path):
    pictures = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    with pytest.raises(TextError, match="does not write what messages say in plain words"):
        conversation(TALK, with_template(lay(), pictures))
    with pytest.raises(TextError, match="there is no chat template 'nowhere': give plain, chatml, or a file of Jinja"):
        with_template(GPT2, "nowhere")
    (tmp_path / "text").write_text("Hello")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("text", "bytes"):
        with pytest.raises(TextError, match="there is no chat template"):
            with_template(GPT2, str(tmp_path / name))


# what to know of a template


def test_notes_name_markers_that_are_no_tokens_and_an_end_that_is_not_the_tokenizers(lay):
    [pieces, end] = template_notes(with_template(GPT2, "chatml"))
    assert pieces.startswith("the template's <|im_end|>, <|im_start|> are no tokens of this base")
    assert end.startswith("an answer ends in <|im_end|>, not in the tokenizer's <|endoftext|>")
    [end] = template_notes(lay(HEADS))
    assert end.startswith("an answer ends in <|eot|>, not in the tokenizer's </s>")
    assert template_notes(GPT2)[0].startswith("conversations are written as lines that begin with User:")
    endless = with_template(lay(), "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    assert template_notes(endless)[0].startswith("the template writes nothing behind an answer")
    assert any("begin with" in note for note in template_notes(lay(WORDS, "bytes", (*MARKS,), True)))
    assert template_notes(lay(BRACKETS, "bytes", (*MARKS,), True)) == []


@pytest.mark.parametrize("raw", ["trained", "zero", "alike", "noise", "mean", "huge"])
def test_a_base_that_never_saw_the_markers_is_found_by_their_rows(lay, raw):
    tokenizer = lay(chat.CHATML)
    sizes = dict(
        hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=tokenizer.size, **sizes))
    rows = model.get_input_embeddings().weight.data
    ids = tokenizer.source.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    rows[ids] = {
        "trained": rows[ids],
        "zero": torch.zeros(2, 32),
        "alike": rows[[5, 5]] + 1e-4 * torch.randn(2, 32),
        "noise": rows[ids] / 20,
        "mean": rows.mean(0) + 1e-6 * torch.randn(2, 32),
        "huge": rows[ids] * 20,
    }[raw]
    notes = [note for note in template_notes(tokenizer, model) if "never trained" in note]
    assert len(notes) == (raw != "trained") and all("on <|im_end|>, <|im_start|>: " in note for note in notes)
    assert not [note for note in template_notes(with_template(tokenizer, "plain"), model) if "never trained" in note]


# answers


@pytest.fixture
def script(monkeypatch):
    """Lets every model say certain tokens."""

    def say(*ids):
        left = [*ids]
        monkeypatch.setattr(generation, "sample", lambda logits, *_: torch.tensor([left.pop(0)]))
        return left

    return say


@pytest.fixture(scope="module")
def llama(lay, tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("bases") / "llama", lay(HEADS).source
    sizes = dict(
        hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(source), **sizes)).save_pretrained(folder)
    source.save_pretrained(folder)
    return folder


def test_an_answer_stops_at_the_templates_end_of_turn_or_at_the_tokenizers(llama, script):
    base = bases.load(llama)
    hello = base.tokenizer.encode("Hello!")
    for end in ("<|eot|>", "</s>"):
        left = script(*hello, base.tokenizer.source.convert_tokens_to_ids(end), 9, 9, 9)
        assert base.chat([SYSTEM, HI]) == "Hello!" and len(left) == 3


def test_an_answer_of_the_courses_own_model_follows_its_question(script):
    torch.manual_seed(0)
    base = replace(bases.load("course"), model=GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)))
    left = script(*GPT2.encode(" Hello!"), GPT2.end, 9)
    assert base.chat("Hi there") == "Hello!" and left == [9]
    spelt = replace(base, tokenizer=with_template(GPT2, "chatml"))  # its end is text there
    script(*GPT2.encode("Hello!<|im_end|>\n<|im_start|>user"), *[9] * 60)
    assert spelt.chat([HI], max_new_tokens=20) == "Hello!"


def test_the_same_seed_gives_the_same_answer_to_the_same_tokens(llama):
    base = bases.load(llama)
    ids, answer = opening(TALK[:3], base.tokenizer), base.chat(TALK[:3], 12, temperature=0)
    out = bases.generate(base.model, torch.tensor([ids]), 12, base.tokenizer, temperature=0)[0, len(ids) :]
    assert answer == base.tokenizer.decode(out).strip()
    assert base.chat(TALK[:3], 12, seed=1) == base.chat(TALK[:3], 12, seed=1)


@pytest.mark.parametrize("kind", ["course", "transformers"])
def test_a_row_ends_at_any_of_several_tokens_and_is_filled_with_the_first(llama, monkeypatch, kind):
    base = bases.load(llama if kind == "transformers" else "course")
    draws = iter([[7, 9], [6, 9], [9, 9], [9, 5]])
    monkeypatch.setattr(generation, "sample", lambda logits, *_: torch.tensor(next(draws)))
    out = bases.generate(base.model, torch.tensor([[1], [2]]), 10, stop=(5, 6))[:, 1:]
    assert out.tolist() == [[7, 6, 5, 5], [9, 9, 9, 5]]


@pytest.mark.parametrize("template", [None, chat.CHATML])
def test_generate_asks_an_adapter_of_a_chat_run_as_a_user_in_the_runs_template(
    tiny, tmp_path, capsys, monkeypatch, template
):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat on the mat. " * 60)
    made = [
        "finetune",
        "text.txt",
        "--base",
        tiny,
        "--out",
        "made",
        "--steps",
        "2",
        "--rows",
        "2",
        "--block",
        "8",
        "--rank",
        "2",
    ]
    assert main(made) == 0
    report = (
        json.loads(Path("made/run.json").read_text()) | dict(chat=True) | (dict(template=template) if template else {})
    )
    Path("made/run.json").write_text(json.dumps(report))
    assert main(["merge", "made", "--out", "whole"]) == 0
    asked = []
    monkeypatch.setattr(
        bases.Base, "chat", lambda self, *args: asked.append((args[0], self.tokenizer.template)) or "Hello"
    )
    capsys.readouterr()
    for argv in (["--adapter", "made"], ["--base", "whole"], ["--base", "whole", "--system", "Be brief."]):
        assert main(["generate", "Hi there, you", *argv]) == 0 and capsys.readouterr().out == "Hello\n"
    own = template or "plain"
    assert asked == [([HI], own), ([HI], own), ([SYSTEM, HI], own)]
    assert main(["generate", "a <|endoftext|>", "--adapter", "made"]) == 0
    assert "spells out special tokens (1), which are read as such" in capsys.readouterr().err
