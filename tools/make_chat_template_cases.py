#!/usr/bin/env python3
"""Writes testdata/text/chat_templates.json: conversations as transformers renders them.

    pip install transformers jinja2; tools/make_chat_template_cases.py

The template of SmolLM2-135M-Instruct is the one in its GGUF file (Apache-2.0); the others are short ones
in the shapes that published models use. A conversation that a template refuses has its message.
"""
import json, os
import jinja2, transformers
from transformers.utils.chat_template_utils import render_jinja_template

OUT = os.path.join(os.path.dirname(__file__), '..', 'testdata', 'text', 'chat_templates.json')

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' "
    "}}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# ChatML with blocks on lines of their own, which trim_blocks and lstrip_blocks take away.
CHATML = """\
{% if not messages %}
    {{ raise_exception('there are no messages') }}
{% endif %}
{% for message in messages %}
    {% if message.role not in ['system', 'user', 'assistant'] %}
        {% continue %}
    {% endif %}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
# The system text goes into the first message, roles must take turns, answers end with a token.
LLAMA_2 = """\
{%- set ns = namespace(system='') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('user and assistant must take turns') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + (ns.system if loop.first else '') + message['content'].strip() + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' ~ message['content'].strip() ~ ' ' ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
# Marks of roles on lines of their own, every message ended by the token that ends texts.
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
# No system text, the words of Python's strings, a macro, and what a model thinks taken out of answers.
STRICT = """\
{%- macro turn(role, text) -%}
<start_of_turn>{{ role }}
{{ text.rstrip() }}<end_of_turn>
{% endmacro -%}
{{ bos_token }}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{ raise_exception('a system message is not supported') }}
    {%- endif -%}
    {%- set text = message.content -%}
    {%- if message.role == 'assistant' and '</think>' in text -%}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{ turn('model' if message.role == 'assistant' else message.role, text) }}
{%- endfor -%}
{%- if add_generation_prompt %}<start_of_turn>model
{% endif -%}
"""
TEMPLATES = {
    'smollm2': (SMOLLM2, '<|im_start|>', '<|im_end|>'),
    'chatml': (CHATML, '', '<|im_end|>'),
    'llama_2': (LLAMA_2, '<s>', '</s>'),
    'zephyr': (ZEPHYR, '<s>', '</s>'),
    'strict': (STRICT, '<bos>', '<eos>'),
}
CONVERSATIONS = [
    (None, [['Hello!', None]]),
    (None, [['  What is 2 + 2?\n', '4'], ['And <3 + "3">?', None]]),
    ('Answer in one word.', [['Größe der 猫?', None]]),
    ('Be brief. ', [['One', '<think>\nhm\n</think>\n\nUno'], ['Two', 'Dos ']]),
    (None, []),
]


def render(template, marks, system, turns):
    messages = [{'role': 'system', 'content': system}] if system is not None else []
    for user, answer in turns:
        messages.append({'role': 'user', 'content': user})
        if answer is not None:
            messages.append({'role': 'assistant', 'content': answer})
    opens = bool(turns) and turns[-1][1] is None
    tokens = {name: mark for name, mark in zip(('bos_token', 'eos_token'), marks) if mark}
    texts, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=opens, **tokens)
    return texts[0]


cases = []
for name, (template, *marks) in TEMPLATES.items():
    for system, turns in CONVERSATIONS:
        case = {'template': name, 'system': system, 'turns': turns}
        try:
            case['prompt'] = render(template, marks, system, turns)
        except jinja2.exceptions.TemplateError as error:
            case['error'] = str(error)
        cases.append(case)
with open(OUT, 'w') as file:
    reference = f'transformers {transformers.__version__}, jinja2 {jinja2.__version__}'
    templates = {name: {'source': t[0], 'marks': list(t[1:])} for name, t in TEMPLATES.items()}
    json.dump({'reference': reference, 'templates': templates, 'cases': cases}, file, indent=1, ensure_ascii=False)
    file.write('\n')
