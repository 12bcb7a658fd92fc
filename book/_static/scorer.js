// What Sphinx's search ranks by: chapters first, then the functions of the package, the bibliography, notebooks, and the lab.
// Within each kind a title counts more than the text, as usual.
var Scorer = {
  score: ([, , , , score, file]) => {
    if (file.startsWith("book/package/lab.")) return score;
    if (file.startsWith("notebooks/")) return score + 40;
    if (file.startsWith("book/bibliography.")) return score + 60;
    if (file.startsWith("book/package/api.")) return score + 80;
    return score + 120;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 0, 1: 0, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
