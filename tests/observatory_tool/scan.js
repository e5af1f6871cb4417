// node scan.js HOST: print the grade of a host as JSON.
import { scan } from "@mdn/mdn-http-observatory/src/scanner/index.js";

const result = await scan(process.argv[2]);
const rules = Object.entries(result.tests).map(([name, test]) => [name, [test.result, test.scoreModifier]]);
console.log(JSON.stringify({ score: result.scan.score, rules: Object.fromEntries(rules) }));
