// What a dashboard's JSON may be, made of Grafana's published types: its panels are typed by their kind, which the published
// Dashboard leaves open, and enumerations are the words that stand in the JSON.
import type { Dashboard, DataQuery } from '@grafana/schema';
import type { AnnotationQuery, FieldConfig, FieldConfigSource, Panel, RowPanel } from '@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen.d.ts';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.d.ts';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.d.ts';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts';

type Plain<T> = T extends string
  ? `${T}`
  : T extends Array<infer Item>
    ? Plain<Item>[]
    : T extends object
      ? { [Key in keyof T]: Plain<T[Key]> }
      : T;

// Grafana fills in what a panel's options leave out.
type Loose<T> = T extends Array<infer Item> ? Loose<Item>[] : T extends object ? { [Key in keyof T]?: Loose<T[Key]> } : T;

// Prometheus' own, which are published with its plugin and not here.
interface Query extends DataQuery {
  expr: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  range: boolean;
  legendFormat?: string;
  interval?: string;
  intervalFactor?: number;
}
interface Annotation extends AnnotationQuery {
  expr: string;
  step: string;
  textFormat: string;
  titleFormat: string;
  useValueForTime: boolean;
}

type Kind<Type, Options, Custom> = Plain<Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'>> & {
  type: Type;
  options?: Plain<Loose<Options>>;
  fieldConfig?: Plain<Omit<FieldConfigSource, 'defaults'>> & {
    defaults: Plain<Omit<FieldConfig, 'custom'>> & { custom?: Plain<Loose<Custom>> };
  };
  targets: Plain<Query>[];
};

export type Board = Plain<Omit<Dashboard, 'panels' | 'annotations'>> & {
  annotations: { list?: Plain<Annotation>[] };
  panels: (
    | Plain<RowPanel>
    | Kind<'heatmap', heatmap.Options, heatmap.FieldConfig>
    | Kind<'stat', stat.Options, Record<string, never>>
    | Kind<'table', table.Options, table.FieldConfig>
    | Kind<'timeseries', timeseries.Options, timeseries.FieldConfig>
  )[];
};
