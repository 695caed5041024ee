// What every part of the page makes elements and words with.

export const $ = (id) => document.getElementById(id);

/** An element with properties, `data` attributes and children. */
export function el(tag, { data, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.dataset, data);
  made.append(...children.filter((child) => child != null));
  return made;
}

export const show = (element, text) => {
  element.textContent = text ?? "";
  element.hidden = !text;
};
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export function duration(seconds) {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
