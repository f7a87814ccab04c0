// Presets, files and the link of a steering (steering_tools.py).
const MOST = 1 << 20 // characters of an uploaded file

export function render({ model }) {
  const root = make("section", "tools", null, { "aria-label": "Presets and files" })
  const presets = make("div", "line")
  const pick = make("select", "", null, { "aria-label": "Open a preset" })
  const name = make("input", "", null, { type: "text", placeholder: "Name", maxlength: "80", "aria-label": "Name of the preset", spellcheck: "false" })
  const save = make("button", "small", "Save", { type: "button", title: "Saved as the next version of this name, beside the runs" })
  presets.append(pick, name, save)
  const files = make("div", "buttons")
  const copy = make("button", "small", "Copy link", { type: "button", title: "The address holds the whole steering" })
  const own = make("button", "small", "Download", { type: "button", title: "A JSON file with the SAE’s hash, for rewardscope steer and for import here" })
  const sarm = make("button", "small", "SARM file", { type: "button", title: 'SARM’s JSON: {"feature": ["*", factor]}' })
  const load = make("button", "small", "Import …", { type: "button", title: "A file of rewardscope or of SARM" })
  const upload = make("input", "", null, { type: "file", accept: ".json,application/json", "aria-label": "Import a steering (JSON)" })
  upload.hidden = true
  files.append(copy, own, sarm, load, upload)
  const said = make("p", "rs-small said", null, { role: "status" })
  const address = make("input", "", null, { type: "text", readonly: "", "aria-label": "Link to this steering" })
  address.hidden = true
  root.append(make("h3", "", "Presets, files, link"), presets, files, address, said)

  const draw = () => {
    const options = [make("option", "", model.presets.length ? "Open a preset …" : "No presets yet", { value: "" })]
    for (const one of model.presets) options.push(make("option", "", one.title, { value: one.key }))
    pick.replaceChildren(...options)
    pick.disabled = !model.presets.length
    own.disabled = sarm.disabled = model.empty
    save.disabled = model.empty || !name.value.trim()
    said.textContent = model.said
    said.hidden = !model.said
  }
  name.addEventListener("input", draw)
  name.addEventListener("keydown", (event) => { if (event.key === "Enter" && !save.disabled) save.click() })
  pick.addEventListener("change", () => {
    if (pick.value) model.send_msg({ open: pick.value })
    name.value = model.presets.find((one) => one.key === pick.value)?.name ?? name.value
    pick.value = ""
    draw()
  })
  save.addEventListener("click", () => model.send_msg({ save: name.value }))
  own.addEventListener("click", () => model.send_msg({ download: "own" }))
  sarm.addEventListener("click", () => model.send_msg({ download: "sarm" }))
  load.addEventListener("click", () => upload.click())
  upload.addEventListener("change", async () => {
    const [file] = upload.files
    upload.value = ""
    if (!file) return
    model.send_msg(file.size > MOST ? { too_large: file.name } : { upload: await file.text(), name: file.name })
  })
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href)
      copy.textContent = "Copied"
      setTimeout(() => { copy.textContent = "Copy link" }, 2000)
    } catch {
      address.hidden = false // no clipboard without a secure page: Ctrl-C does it
      address.value = location.href
      address.select()
    }
  })
  model.on(["presets", "empty", "said"], draw)
  model.on("data", () => {
    if (!model.data) return
    const url = URL.createObjectURL(new Blob([model.data], { type: "application/json" }))
    const link = make("a", "", null, { href: url, download: model.file })
    link.click()
    setTimeout(() => URL.revokeObjectURL(url), 10_000)
    model.send_msg({ saved: true })
  })
  draw()
  return root
}
