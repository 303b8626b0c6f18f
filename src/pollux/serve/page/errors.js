// Errors in plain words: what happened and what can be done, for somebody who does not know the API.

/** One or two sentences about an error of gemini.js (or any other). */
export function plainWords(error) {
  const said = sentence(error.message);
  switch (error.code) {
    case 0:
      return "The server cannot be reached. Is it running, and is the network there?";
    case 400:
      return `The server refuses this request: ${said}`;
    case 401:
    case 403:
      return `The server does not allow this: ${said}`;
    case 404:
      return `The server does not have what was asked for: ${said}`;
    case 413:
      return `This is more than the server takes at once: ${said}`;
    case 429:
      return `The server has too much to do just now: ${said}`;
    case 503:
      return `The server cannot answer now: ${said}`;
    case 504:
      return `The answer took longer than the server allows: ${said}`;
    default:
      return error.code >= 500 ? `Something went wrong in the server: ${said}` : said;
  }
}

/** Whether a key, or another key, would help. Other things are forbidden as well, such as a cached content that has expired. */
export function asksForKey(error) {
  if (error.code === 401 || error.reason === "API_KEY_INVALID") return true;
  return error.code === 403 && /\bkey\b/i.test(error.message);
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
