// The share of pairs a plan changes: a slider and a number, both in percent, told to the server with every move.
export function render({ model }) {
  const root = document.createElement("div")
  root.className = "ratio"
  const slider = document.createElement("input")
  const number = document.createElement("input")
  slider.type = "range"
  slider.setAttribute("aria-label", "Share of the training pairs that is changed")
  slider.step = 0.1
  slider.min = 0
  number.type = "number"
  number.setAttribute("aria-label", "Share in percent")
  number.step = 0.1
  number.min = 0
  number.max = 50
  const unit = document.createElement("span")
  unit.textContent = "%"
  root.append(slider, number, unit)

  const percent = () => Math.round(1000 * model.ratio) / 10
  const show = () => {
    slider.max = 100 * model.limit
    const value = String(percent())
    if (slider.value !== value) slider.value = value
    if (number.value !== value && root.getRootNode().activeElement !== number) number.value = value
    slider.setAttribute("aria-valuetext", `${value} percent`)
  }
  const tell = (value) => {
    if (!Number.isFinite(value) || value < 0 || value > 50) { number.setAttribute("aria-invalid", "true"); return }
    number.removeAttribute("aria-invalid")
    model.ratio = Math.round(10 * value) / 1000
  }
  slider.addEventListener("input", () => { number.value = slider.value; tell(Number(slider.value)) })
  number.addEventListener("input", () => { if (number.value !== "") tell(Number(number.value)) })
  number.addEventListener("blur", () => { number.removeAttribute("aria-invalid"); number.value = String(percent()) })
  model.on(["ratio", "limit"], show)
  show()
  return root
}
