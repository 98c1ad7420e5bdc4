//! One panel: what it shows, in which unit, and where its numbers come from.

use serde_json::{Value, json};

/// How a panel draws.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// One number per series, now.
    Stat,
    /// Lines over time.
    Lines,
    /// Areas on top of each other over time.
    Stacked,
}

/// One query: an expression and the name of its series.
pub struct Query {
    /// PromQL.
    pub expr: String,
    /// Legend.
    pub legend: &'static str,
}

/// One panel.
pub struct Panel {
    /// Title.
    pub title: &'static str,
    /// What it answers, in a sentence.
    pub description: &'static str,
    /// Grafana's name of the unit.
    pub unit: &'static str,
    /// How it draws.
    pub look: Look,
    /// Where the numbers come from.
    pub queries: Vec<Query>,
}

impl Panel {
    /// Width and height on the grid.
    pub fn size(&self) -> (u32, u32) {
        match self.look {
            Look::Stat => (4, 4),
            Look::Lines | Look::Stacked => (12, 8),
        }
    }

    /// The panel at a place.
    pub fn json(&self, id: u32, x: u32, y: u32) -> Value {
        let (w, h) = self.size();
        let source = json!({ "type": "prometheus", "uid": "${datasource}" });
        let targets: Vec<_> = self
            .queries
            .iter()
            .zip('A'..='Z')
            .map(|(q, name)| {
                json!({ "refId": name.to_string(), "datasource": source, "expr": q.expr, "legendFormat": q.legend })
            })
            .collect();
        json!({
            "id": id,
            "type": if self.look == Look::Stat { "stat" } else { "timeseries" },
            "title": self.title,
            "description": self.description,
            "datasource": source,
            "gridPos": { "x": x, "y": y, "w": w, "h": h },
            "fieldConfig": { "defaults": { "unit": self.unit, "min": 0, "custom": self.custom() }, "overrides": [] },
            "options": self.options(),
            "targets": targets,
        })
    }

    fn custom(&self) -> Value {
        match self.look {
            Look::Stat => json!({}),
            Look::Lines => json!({ "drawStyle": "line", "fillOpacity": 5, "showPoints": "never" }),
            Look::Stacked => json!({
                "drawStyle": "line", "fillOpacity": 40, "showPoints": "never",
                "stacking": { "mode": "normal", "group": "A" },
            }),
        }
    }

    fn options(&self) -> Value {
        match self.look {
            Look::Stat => json!({
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "colorMode": "value", "graphMode": "area", "textMode": "auto",
            }),
            Look::Lines | Look::Stacked => json!({
                "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
        }
    }
}
