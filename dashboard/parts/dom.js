// What several drawings are made with; dashboard/theme.script puts it before them. Text enters the page as text nodes only.
const NS = "http://www.w3.org/2000/svg"

function make(tag, className = "", text = null, attributes = {}) {
  const node = document.createElement(tag)
  if (className) node.className = className
  if (text !== null) node.textContent = text
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  return node
}

function shape(tag, attributes = {}, text = null) {
  const node = document.createElementNS(NS, tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  if (text !== null) node.textContent = text
  return node
}

// About `count` round numbers between two ends.
function ticks(low, high, count) {
  const rough = (high - low) / count
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = power * ([1, 2, 2.5, 5].find((part) => part * power >= rough) ?? 10)
  const found = []
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step)
  return { found, decimals: Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (step / power === 2.5 ? 1 : 0)) }
}

// Writes a text where it has changed, so that a redraw lays out nothing anew.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text
}

