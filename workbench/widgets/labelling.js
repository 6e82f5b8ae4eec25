// The label panel. `view.js` comes before this in its module.

export default viewOf(Panel);
