"""Writes templates.json: chat templates in the styles that published models use, with what transformers renders.

usage: python templates.py > templates.json
"""

import json

from transformers.utils.chat_template_utils import render_jinja_template

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Temperature of a <place> & more, \"now\"",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1.0}}},
    },
}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello there! "}],
    "system": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "What's 1 < 2?\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTrue."},
        {"role": "user", "content": "Ünïcödé 日本 \"quoted\""},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": "this?"}]},
    ],
}

TEMPLATES = {
    "llama": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ (message['content'] | trim if message.content is string else 'parts') + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " ~ message["content"] ~ "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " ~ message["content"] ~ eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, got " + message["role"]) }}
    {%- endif %}
{%- endfor %}
""",
    "qwen": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index or (loop.last and reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "whitespace": """
  {# a comment #}
{% for message in messages %}
    {% if loop.first %}
first
    {%+ endif %}
  {%- if loop.last -%}   last   {%- endif %}

\t{{ message.role }}
{% endfor %}
{#- another -#}
   end {% raw %}{{ raw }}{% endraw %}

""",
    "printing": """{{ none }} {{ true }} {{ false }} {{ 1.0 }} {{ 10 / 4 }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ -3 }} {{ 1e20 }}
{{ [1, 'a', none, 2.5] }} {{ {'k': [true, "it's"], 'ü': 'é"'} }} {{ ('x', 1) }} {{ [] }} {{ {} }}
{{ tools }} {{ undefined_name }}|{{ messages[0].missing }}|{{ messages[0]['missing'] }}
{{ {'b': 1, 'a': '<é>'} | tojson }} {{ {'b': 1, 'a': {'d': 1, 'c': [1, 2]}} | tojson(sort_keys=true) }}
{{ [1, {'a': 2}] | tojson(indent=2) }} {{ {'a': [1, 2]} | tojson(separators=(',', ':')) }} {{ "a\\tb\\\\" | tojson }}
{{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 1 < 2 < 3 }} {{ not none }} {{ 3 in [1, 2] }} {{ 'k' in {'k': 1} }}
{{ 'a' ~ 1 ~ none ~ true }} {{ [1] + [2] }} {{ 'ab' * 2 }} {{ true and 'x' or 'y' }} {{ 'x' if false }}|""",
    "filters": """{{ 'hello World'|capitalize }} {{ 'hello world'|title }} {{ 'x'|upper }} {{ 'X'|lower }} {{ '  x '|trim }}|
{{ ['b', 'a']|sort|join(', ') }} {{ {'b': 2, 'a': 1}|dictsort }} {{ {'b': 2, 'a': 1}|items|list }} {{ messages|map(attribute='role')|list }}
{{ messages|map(attribute='role')|unique|join('-') }} {{ messages|selectattr('role', 'eq', 'user')|list|length }} {{ messages|rejectattr('role', 'equalto', 'user')|list|length }}
{{ 'abc'|first }}{{ 'abc'|last }}{{ 'abc'|length }}{{ 'abc'|reverse }}{{ 'abc'|list }} {{ '42'|int + 1 }} {{ '1.5'|float }} {{ 3.7|int }} {{ -3|abs }}
{{ missing|default('d') }} {{ ''|default('d', true) }} {{ none|default('d') }} {{ 'a-b'|replace('-', '+') }} {{ [3, 1, 2]|max }}{{ [3, 1, 2]|min }}{{ [3, 1, 2]|sum }}
{{ 'a\\nb'|indent(2) }} {{ [1, 2, 3, 4]|batch(2)|list }} {{ 2.345|round(1) }} {{ 'x'|string }} {{ 12|string + '!' }} {{ [1, 2, 3]|select('odd')|list }}
{{ 'a b c'.split() }} {{ 'a,b'.split(',') }} {{ ','.join(['a', 'b']) }} {{ 'abc'.replace('b', 'x') }} {{ 'abc'.find('c') }} {{ 'Abc'.lower() }} {{ 'abc'.title() }} {{ 'a'.isdigit() }} {{ 'abab'.count('a') }}
{{ messages[0].get('role') }} {{ messages[0].get('none', 'dflt') }} {{ messages[0].keys()|list }} {{ 'xabcx'.strip('x') }} {{ 'a\\n\\nb'.splitlines() }}""",
    "control": """{% for i in range(0, 10, 3) %}{{ loop.index }}/{{ loop.length }}:{{ i }}{{ ',' if not loop.last }}{% endfor %}
{% for x in [] %}none{% else %}empty{% endfor %}
{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }} {% endfor %}
{% for m in messages if m.role != 'system' %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ loop.nextitem.role if loop.nextitem is defined else '-' }} {{ loop.cycle('odd', 'even') }} {% endfor %}
{% set block %}a {{ 1 + 1 }} b{% endset %}{{ block }}
{% filter upper %}shout{% endfilter %}
{% macro tag(name, body='', close=true) %}<{{ name }}>{{ body }}{% if close %}</{{ name }}>{% endif %}{% endmacro %}{{ tag('b', 'x') }}{{ tag('i', close=false) }}
{% macro nest(n) %}{% if n > 0 %}({{ nest(n - 1) }}){% endif %}{% endmacro %}{{ nest(3) }}
{% set ns = namespace(found=false, items=[]) %}{% for i in [1, 2, 3] %}{% if i == 2 %}{% set ns.found = true %}{% continue %}{% endif %}{% set ns.items = ns.items + [i] %}{% endfor %}{{ ns.found }}{{ ns.items }}
{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% with x = 5 %}{{ x }}{% endwith %} {{ 'a' is string }}{{ 1 is number }}{{ [] is sequence }}{{ {} is mapping }}{{ 'a' is iterable }}{{ none is none }}{{ 1 is integer }}{{ 1.5 is float }}{{ true is boolean }}{{ x is undefined }}{{ 4 is even }}{{ 4 is divisibleby(2) }}{{ 'A' is upper }}{{ 1 is eq(1) }}{{ 2 in (1, 2) }}{{ true is true }}{{ 1 is true }}
{{ 'abc'[1] }}{{ 'abc'[-1] }}{{ 'abcdef'[1:4] }}{{ 'abcdef'[::2] }}{{ [1, 2, 3][-2:] }}{{ messages[-1]['role'] }}{{ messages[0]['content'][0] is mapping }}""",
}


def main():
    rows = []
    for name, template in TEMPLATES.items():
        for conversation, messages in CONVERSATIONS.items():
            for generation in (True, False):
                for tools in (None, [TOOL]):
                    variables = {"bos_token": "<s>", "eos_token": "</s>"}
                    try:
                        text, _ = render_jinja_template(
                            [messages], tools=tools, chat_template=template, add_generation_prompt=generation, **variables
                        )
                        result = {"text": text[0]}
                    except Exception as error:
                        result = {"error": str(error)}
                    rows.append(
                        {"template": name, "messages": conversation, "add_generation_prompt": generation, "tools": bool(tools)} | result
                    )
    data = {"templates": TEMPLATES, "conversations": CONVERSATIONS, "tools": [TOOL], "rows": rows}
    print(json.dumps(data, ensure_ascii=False, indent=1))


main()
