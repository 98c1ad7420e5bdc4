//! Grafana dashboards from code, so that they cannot drift from the metrics unseen.
//!
//! Inputs: the panels in [`market`]. Outputs: classic dashboard JSON, which every Grafana imports.
//! Invariant: the committed files under `manifests/dashboards` and in the chart are what this module prints (a test).

mod market;
mod panel;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::CliError;
use panel::Panel;

/// A dashboard before it is laid out.
struct Dashboard {
    uid: &'static str,
    title: &'static str,
    description: &'static str,
    panels: Vec<Panel>,
}

/// Columns of Grafana's grid.
const GRID: u32 = 24;

impl Dashboard {
    fn json(&self) -> Value {
        let (mut x, mut y, mut row) = (0, 0, 0);
        let mut panels = vec![];
        for (id, panel) in (1u32..).zip(&self.panels) {
            let (width, height) = panel.size();
            if x + width > GRID {
                (x, y, row) = (0, y + row, 0);
            }
            panels.push(panel.json(id, x, y));
            x += width;
            row = row.max(height);
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["vendue"],
            "schemaVersion": 41,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "annotations": { "list": [] },
            "links": [],
            "templating": { "list": [{
                "name": "datasource",
                "label": "Data source",
                "type": "datasource",
                "query": "prometheus",
                "hide": 0,
                "current": {},
            }] },
            "panels": panels,
        })
    }
}

/// Name and content of every file.
pub fn files() -> Result<Vec<(&'static str, String)>, CliError> {
    let text = serde_json::to_string_pretty(&market::dashboard().json());
    let text = text.map_err(|e| CliError::failed(format!("encode dashboard: {e}")))?;
    Ok(vec![("market.json", format!("{text}\n"))])
}

/// Writes all dashboards to a folder.
pub fn write(folder: &Path) -> Result<(), CliError> {
    fs::create_dir_all(folder).map_err(|e| CliError::file(folder, &e))?;
    for (name, text) in files()? {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|e| CliError::file(&path, &e))?;
    }
    Ok(())
}
