int cmd_inspect(int, char **);int cmd_convert(int, char **);int cmd_merge(int, char **);
int cmd_inspect(int a, char **b){(void)a;(void)b;return 1;}int cmd_convert(int a, char **b){(void)a;(void)b;return 1;}int cmd_merge(int a, char **b){(void)a;(void)b;return 1;}
