// Panel 1.9.4's table drops rows that arrive while it is being built: once it stands, it is compared with its model.
function catch_up(view) {
  if (!view.tabulator?.initialized || view._building || view._initializing) { return }
  if (JSON.stringify(view.tabulator.getData()) !== JSON.stringify(view.getData())) { view.model.source.properties.data.change.emit() }
}

const Table = Bokeh.Models.get("panel.models.tabulator.DataTabulator")
const view_class = Table.prototype.default_view.prototype
if (!view_class.catches_up) {
  view_class.catches_up = true
  const built = view_class.tableBuilt
  view_class.tableBuilt = function () {
    built.call(this)
    catch_up(this)
  }
  for (const view of Bokeh.index.query((view) => view.model instanceof Table)) { catch_up(view) }
}

