// A request of the page as a command line (curl) and as Python (the google-genai client), ready to be run. Media are named as files
// instead of being written out, so both stay readable; the files are those that were attached or drawn.

import { hasKey, serverAddress } from "./gemini.js";
import { isLarge, nameFor } from "./media.js";
import { requestBody } from "./request.js";

/** {python, curl} of the request that turns, settings and cache make. */
export async function asCode(model, turns, settings, cache) {
  const files = new Map(); // medium -> name of its file
  const body = await requestBody(turns, settings, cache, (medium) => {
    files.set(medium, fileName(medium, new Set(files.values())));
    return { medium };
  });
  return { python: python(model, body, files, settings), curl: curl(model, body, files) };
}

function fileName(medium, taken) {
  const [, base, ending] = /^(.*?)(\.[^.]*)?$/.exec(medium.name || nameFor("file", medium.mimeType));
  let name = base + (ending ?? "");
  for (let n = 2; taken.has(name); n += 1) name = `${base}-${n}${ending ?? ""}`;
  return name;
}

// --- curl: the body goes in by a here document, which has no limit of length and lets the shell fill in the files.

const MARK = "\uE000"; // from the private use area: stands around the number of a file until the shell's characters are escaped

function curl(model, body, files) {
  const names = [...files.values()];
  const written = JSON.stringify(
    body,
    (key, value) => {
      if (!value?.medium) return value;
      const { medium } = value;
      if (isLarge(medium))
        return {
          fileData: { mimeType: medium.mimeType, fileUri: medium.file?.uri ?? "the uri that an upload to /upload/v1beta/files answers" },
        };
      return { inlineData: { mimeType: medium.mimeType, data: MARK + names.indexOf(files.get(medium)) + MARK } };
    },
    2,
  );
  const escaped = written
    .replace(/[\\$`]/g, "\\$&")
    .replace(new RegExp(`${MARK}(\\d+)${MARK}`, "g"), (whole, n) => `$(base64 < ${inShell(names[n])} | tr -d '\\n')`);
  const lines = [
    `curl --no-buffer "${serverAddress()}/v1beta/${model}:streamGenerateContent?alt=sse"`,
    `  -H "Content-Type: application/json"`,
    ...(hasKey() ? [`  -H "x-goog-api-key: $GEMINI_API_KEY"`] : []),
    `  --data-binary @- <<JSON`,
  ];
  return `${lines.join(" \\\n")}\n${escaped}\nJSON\n`;
}

function inShell(name) {
  return `'${name.replaceAll("'", "'\\''")}'`;
}

// --- Python

const RAN = `        elif part.executable_code:
            print("", part.executable_code.code, "", sep="\\n")
        elif part.code_execution_result:
            print(part.code_execution_result.output)
`;

function python(model, body, files, settings) {
  const paths = [...files].map(([medium, name]) => [medium, literal(name)]);
  const expressions = new Map(
    paths.map(([medium, path]) =>
      isLarge(medium)
        ? [medium, `client.files.upload(file=${path})`]
        : [medium, call("types.Part.from_bytes", [`data=Path(${path}).read_bytes()`, `mime_type=${literal(medium.mimeType)}`], 4)],
    ),
  );
  const part = (each) => {
    if (each.medium) return isLarge(each.medium) ? uploaded(each.medium, expressions) : expressions.get(each.medium);
    if (Object.keys(each).join() === "text") return `types.Part(text=${literal(each.text)})`;
    return `types.Part.model_validate(${literal(each)})`;
  };
  const turn = ({ role, parts }) => call("types.Content", [`role=${literal(role)}`, `parts=${list(parts.map(part), 3)}`], 2);
  const config = configArguments(body);
  const request = [
    `model=${literal(model.replace(/^models\//, ""))}`,
    `contents=${list(body.contents.map(turn), 1)}`,
    ...(config.length ? [`config=${call("types.GenerateContentConfig", config, 1)}`] : []),
  ];
  const client = [
    `api_key=${hasKey() ? 'os.environ["GEMINI_API_KEY"]' : '"none"'}`,
    `http_options=types.HttpOptions(base_url=${literal(serverAddress())})`,
  ];
  return `${hasKey() ? "import os\n" : ""}from pathlib import Path

from google import genai
from google.genai import types

client = ${call("genai.Client", client, 0)}

answer = ${call("client.models.generate_content_stream", request, 0, true)}
for chunk in answer:
    for part in chunk.parts or []:
        if part.text:
            print(part.text, end="", flush=True)
${settings.tools?.includes("codeExecution") ? RAN : ""}        elif part.inline_data:
            Path("drawn.png").write_bytes(part.inline_data.data)
`;
}

function uploaded(medium, expressions) {
  return `types.Part(file_data=types.FileData(file_uri=${expressions.get(medium)}.uri, mime_type=${literal(medium.mimeType)}))`;
}

const TOOLS = { codeExecution: "ToolCodeExecution", googleSearch: "GoogleSearch", urlContext: "UrlContext" };

function configArguments({ systemInstruction, cachedContent, tools, generationConfig = {} }) {
  const { responseModalities, thinkingConfig, ...plain } = generationConfig;
  const made = [];
  if (systemInstruction) made.push(`system_instruction=${literal(systemInstruction.parts[0].text)}`);
  if (cachedContent) made.push(`cached_content=${literal(cachedContent)}`);
  const toolOf = (name) => `types.Tool(${snakeCase(name)}=types.${TOOLS[name]}())`;
  if (tools) made.push(`tools=${list(tools.map((tool) => toolOf(Object.keys(tool)[0])), 2)}`);
  made.push(...keywords(plain));
  if (responseModalities) made.push(`response_modalities=${literal(responseModalities)}`);
  if (thinkingConfig) made.push(`thinking_config=${call("types.ThinkingConfig", keywords(thinkingConfig), 2)}`);
  return made;
}

function keywords(values) {
  return Object.entries(values).map(([name, value]) => `${snakeCase(name)}=${literal(value)}`);
}

const snakeCase = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** A JSON value as Python writes it. */
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([key, each]) => `${literal(key)}: ${literal(each)}`)
      .join(", ")}}`;
  return JSON.stringify(value); // numbers, and strings: every JSON string is a Python string
}

const WIDTH = 100;

/** name(arguments), on one line if it fits, `depth` steps in. */
function call(name, values, depth, always = false) {
  return wrapped(`${name}(`, values, ")", depth, always);
}

function list(values, depth) {
  return wrapped("[", values, "]", depth, false);
}

function wrapped(open, values, close, depth, always) {
  const line = open + values.join(", ") + close;
  if (!always && !line.includes("\n") && line.length + 4 * depth < WIDTH) return line;
  const inside = "    ".repeat(depth + 1);
  return `${open}\n${values.map((value) => `${inside}${value},\n`).join("")}${"    ".repeat(depth)}${close}`;
}
